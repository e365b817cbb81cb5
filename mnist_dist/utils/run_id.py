"""Ids of runs: what a run is known by in its checkpoints and in the tracker."""

import re

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Trackers use it in file names."""
