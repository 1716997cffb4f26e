"""What the driver itself uses: flat in a run of any length, or something leaks."""

import psutil
from ray._private.worker import global_worker


def driver_metrics() -> dict[str, float]:
    """Memory, open files and object references of this process, which is attached to a cluster."""
    process = psutil.Process()
    return {
        "perf/driver_rss_gib": process.memory_info().rss / 2**30,
        "perf/driver_open_files": process.num_fds(),
        "perf/driver_objects": len(global_worker.core_worker.get_all_reference_counts()),  # pyright: ignore
    }
