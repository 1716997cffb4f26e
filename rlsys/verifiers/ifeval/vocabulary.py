"""Words and phrases that sampled constraints are made of."""

WORDS = (
    "anchor", "apple", "balance", "basket", "beacon", "blossom", "border", "bridge", "bucket", "butter", "candle",
    "canvas", "carpet", "castle", "chance", "circle", "cloud", "coast", "copper", "corner", "cotton", "courage",
    "credit", "custom", "debate", "desert", "detail", "dinner", "doctor", "dragon", "dream", "echo", "effort", "engine",
    "evening", "fabric", "factor", "family", "farmer", "feather", "figure", "finger", "flame", "flower", "forest",
    "freedom", "future", "garden", "garlic", "gesture", "glacier", "golden", "gravity", "guitar", "habit", "hammer",
    "harbor", "harvest", "history", "honey", "horizon", "insect", "island", "jacket", "journey", "jungle", "kettle",
    "kitchen", "ladder", "lantern", "leather", "lemon", "letter", "library", "lumber", "magnet", "market", "meadow",
    "memory", "mirror", "moment", "motion", "mountain", "museum", "music", "nature", "needle", "network", "number",
    "ocean", "office", "orange", "orchard", "origin", "oxygen", "paper", "parade", "pattern", "pencil", "pepper",
    "planet", "pocket", "policy", "powder", "prairie", "purpose", "puzzle", "quarter", "question", "rabbit", "reason",
    "record", "ribbon", "river", "rocket", "rumor", "saddle", "salmon", "science", "season", "shadow", "shelter",
    "silence", "silver", "sister", "slope", "smoke", "soldier", "spring", "station", "storm", "story", "stream",
    "summer", "sunset", "system", "teacher", "temple", "theory", "thunder", "ticket", "timber", "travel", "tunnel",
    "valley", "velvet", "village", "violin", "voyage", "wagon", "water", "weather", "whisper", "window", "winter",
    "wisdom", "wonder", "yellow",
)  # fmt: skip

END_PHRASES = (
    "Is there anything else I can help with?",
    "Any other questions?",
    "That is all for now.",
    "I hope this helps!",
    "Let me know what you think.",
    "Thank you for reading.",
    "And that is the whole story.",
    "More on this another day.",
)
