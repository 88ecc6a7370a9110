"""The command line, a file a verb: options become settings, results become lines. No logic of its own."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import warnings
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from autodiffusion import __version__
from autodiffusion._cli._help import Grouped
from autodiffusion._cli.evaluate import evaluate_command
from autodiffusion._cli.layers import layers_command
from autodiffusion._cli.plans import plans_command
from autodiffusion._cli.reference import reference_command
from autodiffusion._cli.report import report_command
from autodiffusion._cli.sample import sample_command
from autodiffusion._cli.search import search_command
from autodiffusion._errors import InputError, RunError, with_input

INTERRUPTED = 130
"""The exit status of a process that was stopped from the keyboard."""

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"autodiffusion {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    """Finds at which few time steps to sample a pretrained diffusion model, without training."""


app.command("search", cls=Grouped, short_help="search time steps, and layers to leave out")(search_command)
app.command("evaluate", cls=Grouped, short_help="score a plan or a named grid on fresh noise")(evaluate_command)
app.command("sample", cls=Grouped, short_help="draw images of a plan or a grid")(sample_command)
app.command("layers", short_help="list the layers that a plan may leave out")(layers_command)
app.command("plans", short_help="list, show, resample or write plans")(plans_command)
app.command("reference", cls=Grouped, short_help="compute what samples are compared with")(reference_command)
app.command("report", short_help="draw the report of searches")(report_command)


def main() -> NoReturn:
    """The ``autodiffusion`` command. Exit status: 0 done, 1 failed while running, 2 unusable input, 130 interrupted."""
    sys.path.insert(0, os.getcwd())  # so that package.module:attribute finds what lies where the user stands
    warnings.showwarning = _warn
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the shell, as by >&-
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
    try:
        status = app(prog_name="autodiffusion", standalone_mode=False)
    except InputError as error:
        sys.exit(_complain(str(error), 2))
    except RunError as error:
        sys.exit(_complain(str(error), 1))
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except OSError as error:
        if error.errno is None:  # not the system's: a library's own
            raise
        sys.exit(_complain(_of_system(error), 2 if error.errno == errno.ENAMETOOLONG else 1))
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # pydantic wraps one that reaches its serializers
            status = INTERRUPTED
        elif type(error).__name__ == "OutOfMemoryError":  # torch's, which most commands never import
            remedy = "free some of it, or give --dtype bfloat16 or another --device"
            sys.exit(_complain(f"memory does not suffice, even for one sample at a time; {remedy}", 1))
        # what typer says of unknown or malformed options; which class that is differs between its versions
        elif hasattr(error, "format_message"):
            command = getattr(getattr(error, "ctx", None), "command_path", "autodiffusion")
            message = error.format_message().rstrip(".")
            if isinstance(error.__cause__, ValidationError):  # which typer has for numbers; it leaves out the input
                message = with_input(message, error.__cause__.errors()[0]["input"])
            sys.exit(_complain(f"{message}; {command} --help lists what there is", 2))
        else:
            raise
    if status == INTERRUPTED:  # which some versions of typer give back and others raise
        print(f"interrupted; to go on: {shlex.join(['autodiffusion', *sys.argv[1:]])}", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str, status: int) -> int:
    print(f"autodiffusion: {' '.join(message.split())}", file=sys.stderr)
    return status


def _of_system(error: OSError) -> str:
    """What the system refused, such as room on a disk, and what to do."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it once more at its end
        return "nothing reads what is printed any more; what was written before is whole"
    place = f"{error.filename or 'the system'}"
    place = place if len(place) < 200 else f"{place[:80]}...{place[-80:]}"
    remedy = "give another name" if error.errno == errno.ENAMETOOLONG else "mend that and call it again"
    return f"{place}: {error.strerror or error}; {remedy}"


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"autodiffusion: warning: {' '.join(str(message).split())}", file=sys.stderr)
