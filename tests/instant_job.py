"""Jobs of a comparison that train nothing, to test how jobs are scheduled."""

from sim.compare.job import Job
from sim.compare.results import Row
from sim.launcher import RunError
from sim.run_config import ConfigValue


class InstantJob(Job):
    """A job whose run takes no time, and fails if its codec is ``"fails"``."""

    def measure(self, config: dict[str, ConfigValue]) -> tuple[Row, list[Row]]:
        """Return a run and its only point."""
        if config["codec"] == "fails":
            raise RunError("this codec fails")
        point = {"step": 4, "accuracy": 0.5, "uplink_bytes": 10, "downlink_bytes": 0}
        return {"config": config, "wall_seconds": 0.0}, [point]
