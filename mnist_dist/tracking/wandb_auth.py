"""Whether wandb's server takes the key: asked as the program starts, and never waited for.

The answer comes while torch is imported, so that a wrong key is said before training starts. One that comes later is
left to the tracker, which goes offline too: what the network does never decides whether a run trains, nor when it
starts.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from dataclasses import replace

from mnist_dist.config.schema import Config
from mnist_dist.tracking.tracker import find_key, tracking_mode, wandb_address

ANSWER_SECONDS = 10.0


class KeyCheck:
    """Asks on a thread of its own, if wandb is to be online by a key."""

    def __init__(self, config: Config) -> None:
        self.refused = ""
        """Who refused which key; empty as long as nobody did."""
        key, where = find_key()
        self._thread = threading.Thread(target=self._ask, args=(key, where), name="wandb key", daemon=True)
        if key and tracking_mode(config.tracking)[0] == "online":
            self._thread.start()

    def settle(self, config: Config, warn: Callable[[str], None]) -> Config:
        """The configuration by which to record: offline where the key is known to be refused, which is said."""
        if not self.refused:
            return config
        warn(f"{self.refused}; this run is recorded offline, and `wandb login --relogin` takes another key")
        return replace(config, tracking=replace(config.tracking, mode="offline"))

    def _ask(self, key: str, where: str) -> None:
        if refuses_key(wandb_address(), key):
            self.refused = f"{wandb_address()} does not take the wandb key of {where}"


def refuses_key(address: str, key: str) -> bool:
    """Whether a wandb server says that it does not know this key. No answer, or any other, is no refusal."""
    import urllib.error
    import urllib.request

    try:
        question = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
        request = urllib.request.Request(f"{address}/graphql", question)
        request.add_header("Content-Type", "application/json")
        # Not passed on where the server sends us elsewhere
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)["data"]["viewer"] is None
    except urllib.error.HTTPError as error:
        return error.code == 401
    except Exception:  # no server, no JSON, not wandb's
        return False
