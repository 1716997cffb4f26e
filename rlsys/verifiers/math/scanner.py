"""A position in a text, and the moves that readers make from it."""

import re


class NotReadError(Exception):
    """The text is not an answer that this reader knows how to read."""


class Scanner:
    """Reads a text from left to right; spaces between tokens never matter."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0

    def skip_space(self) -> None:
        """Moves to the next character that is no space."""
        while self.position < len(self.text) and self.text[self.position] == " ":
            self.position += 1

    def at_end(self) -> bool:
        """Whether nothing but space is left."""
        self.skip_space()
        return self.position == len(self.text)

    def at(self, *starts: str) -> str | None:
        """Which of these the text goes on with. A command counts only whole."""
        self.skip_space()
        for start in starts:
            if self.text.startswith(start, self.position):
                end = self.position + len(start)
                if not (start[0] == "\\" and start[-1].isalpha() and self.text[end : end + 1].isalpha()):
                    return start
        return None

    def take(self, *starts: str) -> str | None:
        """As `at`, and moves past it."""
        found = self.at(*starts)
        if found is not None:
            self.position += len(found)
        return found

    def look(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """What a pattern matches here."""
        self.skip_space()
        return pattern.match(self.text, self.position)

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """As `look`, and moves past it."""
        found = self.look(pattern)
        if found:
            self.position = found.end()
        return found

    def expect(self, mark: str) -> None:
        """Moves past a mark that must come next.

        Raises:
            NotReadError: it does not.
        """
        if not self.take(mark):
            raise NotReadError(f"no {mark!r} at {self.position}")
