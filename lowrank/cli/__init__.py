"""The command line: look into adapters and checkpoints, merge, convert, deploy.

    lowrank inspect DIR            what an adapter holds, or a selection touches
    lowrank merge DIR DIR --out D  several adapters to one
    lowrank convert SRC DST        PEFT directory <-> state file, smaller ranks
    lowrank deploy BASE --out D    weights as an RRAM chip has them, and their errors
    lowrank COMMAND --help         options and examples of a command

Checkpoints are folders with safetensors files, in one piece or in shards. Nothing is
downloaded and no pickle is read. Exit codes: 0 done; 1 an error, told in one line;
2 wrong usage; 130 interrupted.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Sequence

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
COMMANDS = ("inspect", "merge", "convert", "deploy")


class UsageError(ValueError):
    """Options that do not go together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after `lowrank`; None takes the process's.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write((__doc__ or "").strip() + "\n")
        return OK if words else USAGE
    if words[0] not in COMMANDS:
        return _fail(
            "", f"no command {words[0]!r}: one of {', '.join(COMMANDS)}", USAGE
        )
    try:
        return _run(words[0], words[1:])
    except UsageError as error:
        return _fail(words[0], str(error), USAGE)
    except SystemExit as stop:  # help, and wrong usage as tyro tells it
        return stop.code if isinstance(stop.code, int) else USAGE
    except KeyboardInterrupt:
        told = "interrupted: nothing half-written is left that could be read"
        return _fail(words[0], told, INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe has gone, and that is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        kind = "" if isinstance(error, ValueError | OSError) else type(error).__name__
        return _fail(words[0], f"{kind}: {error}" if kind else str(error), FAILED)


def _run(command: str, words: Sequence[str]) -> int:
    """Parse the options of a command and run it; both are imported here."""
    try:
        import tyro

        module = importlib.import_module(f"lowrank.cli._{command}")
    except ModuleNotFoundError as error:
        raise UsageError(f"{error}: pip install lowrank[cli]") from error
    kind = tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(module.Options)
    text = inspect.cleandoc(module.Options.__doc__ or "")
    options = tyro.cli(
        kind, args=list(words), prog=f"lowrank {command}", description=text
    )
    module.run(options)
    sys.stdout.flush()
    return OK


def _fail(command: str, message: str, code: int) -> int:
    """Tell what went wrong, and give the code back."""
    sys.stderr.write(f"lowrank{' ' * bool(command)}{command}: {message}\n")
    return code
