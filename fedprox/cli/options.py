"""Options of the commands, whose mistakes are one line."""

import argparse
from typing import NoReturn

from fedprox.errors import UserError


class Parser(argparse.ArgumentParser):
    """Argparse's parser, with UserError instead of the usage lines and the exit after a mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; see --help")
