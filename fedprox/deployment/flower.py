"""Flower's own commands, run as processes: the interface that Flower documents, and none of its Python."""

import json
import os
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprox.errors import RunStopped, joined_lines, printable

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Flower:
    """Flower's command line for one SuperLink.

    Attributes:
        connection: The SuperLink's name in Flower's config.toml.
        home: FLWR_HOME, the folder of that file; None for the user's own.
    """

    connection: str
    home: Path | None = None

    def json(self, *words: str) -> dict[str, Any]:
        """Run a command of `flwr` and return what it answers.

        Raises:
            RunStopped: If it fails, with its own words.
        """
        try:
            done = subprocess.run(
                self.command(*words, "--format", "json"),
                env=self.environment(),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                start_new_session=True,  # Ctrl-C is for this program, which stops the run
            )
        except subprocess.TimeoutExpired:
            raise RunStopped(f"flwr {words[0]} did not end within {TIMEOUT_S:g} s") from None
        answer = _last_object(done.stdout)
        if done.returncode or not answer.get("success"):
            why = str(answer.get("error-message") or done.stderr or done.stdout).strip()
            why = why.rpartition("\n\n")[2]  # before that it says what it was about to do
            if "is unavailable" in why:  # so Flower calls a wrong certificate, too
                why += " Also check its 'root-certificates'."
            raise RunStopped(f"flwr {words[0]} {self.connection}: {printable(joined_lines(why)[:500])}")
        return answer

    def command(self, *words: str) -> list[str]:
        """Return the command line of `flwr`, with the connection as its last argument before options."""
        options = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
        return [program("flwr"), *words[:options], self.connection, *words[options:]]

    def environment(self) -> dict[str, str]:
        """Return the environment of Flower's processes."""
        return environment({"FLWR_HOME": str(self.home)} if self.home else {})


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return this process' environment for a process of Flower's: its programs are found, and it reports to no one."""
    scripts = sysconfig.get_path("scripts")
    return {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        **more,
    }


def program(name: str) -> str:
    """Return the path of a program of Flower's in this Python's environment."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def _last_object(text: str) -> dict[str, Any]:
    """Return the JSON object at the end of a command's output; what stands before it is for people."""
    for at in (found for found, character in enumerate(text) if character == "{"):
        try:
            value = json.loads(text[at:])
        except ValueError:
            continue
        return value if isinstance(value, dict) else {}
    return {}
