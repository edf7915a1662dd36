"""`slimdeploy`: find the named command, run it, and print its result or its one-line error.

Each command is one file in `commands/`, imported only when it is called, so that `slimdeploy --help` is
instant.
"""

from __future__ import annotations

import importlib
import io
import keyword
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from slimdeploy import __version__
from slimdeploy.toolchain.artifacts import json_text
from slimdeploy.toolchain.channel_values import ChannelValues, joined
from slimdeploy.toolchain.errors import (
    CheckFailed,
    SlimdeployError,
    lost_worker,
    missing_library,
    nearest,
    parameters_shown,
    shorten,
)
from slimdeploy.toolchain.help_groups import write_options
from slimdeploy.toolchain.launch import check_command, launch, reports_errors
from slimdeploy.toolchain.paths import check_paths, outputs_alone
from slimdeploy.toolchain.standard_output import close_for_libraries, only_results

if TYPE_CHECKING:
    from rich.console import RenderableType

# Command -> the line that `slimdeploy --help` shows. The command itself is the function `<name>` in
# `commands/<name>.py`.
COMMANDS = {
    "summary": "Show layers, channels, parameters, MACs and memory of a network.",
    "import": "Convert a torchvision, timm or own PyTorch network to a checkpoint.",
    "train": "Train a network; --sparsity adds an L1 penalty on the BN scales γ.",
    "prune": "Remove the least important channels of a checkpoint.",
    "finetune": "Fine-tune a pruned checkpoint, without the sparsity penalty.",
    "evaluate": "Measure the accuracy and loss of a checkpoint, an ONNX file or an engine.",
    "export": "Write a checkpoint as ONNX and compare it with torch on real images.",
    "calibrate": "Quantise an ONNX file to INT8 with ranges measured on real images.",
    "bench": "Compare the accuracy, latency and memory of models.",
    "report": "Write an HTML or Markdown report with charts of a run or a sweep.",
    "package": "Pack ONNX files and their test images into a bundle for a device.",
    "deploy": "Install a bundle on this device or on others: verify, build, check, measure, switch over.",
    "classify": "Classify image files, folders or raw frames with a model or the deployed version.",
    "serve": "Classify over HTTP with the deployed version or a model.",
    "doctor": "Check what this machine supports; show the command that fixes each problem.",
    "lut": "Measure a latency table of this device, for prune --latency-ms.",
    "sweep": "Run a recipe over λ, ratios and alignments; report the best trade-offs.",
    "run": "Run all stages of a recipe; the same command resumes an interrupted run.",
}

OWN_PROGRESS = ("bench", "deploy", "lut", "serve", "sweep")
"""Commands that show their own progress, or don't end."""

JSON_KEY = "slimdeploy.json"


@dataclass(frozen=True)
class Output:
    """The result of a command: JSON for `--json`, or text for the terminal."""

    json: dict[str, Any]
    text: RenderableType
    failed: str | None = None
    """Why the result failed a check; the result is still printed, and the exit code is 1."""


class Command(click.Command):
    """A command with `--json` and `--debug`, whose callback returns an Output."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(
                ["--json", "as_json"], is_flag=True, help="Print one JSON object on standard output."
            ),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [
            name for param in self.params if isinstance(param.type, ChannelValues) for name in param.opts
        ]
        try:
            return super().parse_args(ctx, joined(args, options))
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click's parser doesn't name the command
            raise

    def invoke(self, ctx: click.Context) -> None:
        as_json = ctx.meta[JSON_KEY] = ctx.params.pop("as_json")
        ctx.params.pop("debug")
        check_command(self.name or "")
        check_numbers(ctx)
        check_paths(ctx)
        with _alone(ctx), only_results(), _waiting(self.name or ""), _flags_named(self):
            output: Output = super().invoke(ctx)
        if not launch().main:
            return
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # not UTF-8: the work is done, so print what it can
        try:
            _print(output, as_json=as_json)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise SlimdeployError(f"done, but cannot write to standard output: {error.strerror}") from error
        if output.failed:
            failure = CheckFailed(output.failed)
            name_flags(failure, self)
            raise failure


def _print(output: Output, *, as_json: bool) -> None:
    if as_json:
        click.echo(json_text(output.json, indent=1))
    else:
        from rich.console import Console

        Console().print(output.text)


@contextmanager
def _flags_named(command: click.Command) -> Iterator[None]:
    """Errors and log lines of the library name parameters of a function: here they become the command's
    flags.
    """
    try:
        with parameters_shown(lambda parameter: _flag_of(command, parameter)):
            yield
    except SlimdeployError as error:
        name_flags(error, command)
        raise


def name_flags(error: SlimdeployError, command: click.Command | None = None) -> None:
    """Replace the parameters named in `error` by the flags of `command` (default: the running command)."""
    own = command or click.get_current_context().command
    error.message = error.told(lambda parameter: _flag_of(own, parameter))


def _flag_of(command: click.Command, parameter: str) -> str:
    """The flag of the command's parameter; the parameter itself if the command has no such flag."""
    for param in command.params:
        if param.name == parameter and isinstance(param, click.Option):
            return max(param.opts, key=len)
    return parameter


def _alone(context: click.Context) -> AbstractContextManager[None]:
    return outputs_alone(context) if launch().main else nullcontext()


def _waiting(name: str) -> AbstractContextManager[None]:
    """Show that the command is running, until it shows its own progress."""
    if name in OWN_PROGRESS or not launch().main:
        return nullcontext()
    from slimdeploy.toolchain.progress import working

    return working(name)


def check_numbers(context: click.Context) -> None:
    """Raises BadParameter for the first option that is NaN or infinite, which no option allows."""
    for param in context.command.params:
        given = context.params.get(param.name or "")
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, float) and not math.isfinite(value):
                raise click.BadParameter(f"{value} is not a finite number.", context, param)


def wants_json() -> bool:
    """Whether the running command was called with `--json`: then only its Output may be printed."""
    return bool(click.get_current_context().meta[JSON_KEY])


def command(name: str, *, help: str | None = None) -> Callable[[Callable[..., Output]], Command]:
    """Decorator: a function that returns an Output becomes the command `name`. `help`: the function's
    docstring where not given.
    """
    return click.command(name, cls=Command, short_help=COMMANDS.get(name), help=help)


class CommandTable(click.Group):
    """The commands of COMMANDS, each imported when it is first asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        module = importlib.import_module(f"slimdeploy.toolchain.commands.{name}")
        return getattr(module, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no such command {args[0]!r}.{nearest(args[0], list(COMMANDS))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=CommandTable, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="slimdeploy")
def cli() -> None:
    """Train a sparse network, prune it, and deploy it to an edge device, with measurements at each step.

    Start with `slimdeploy run`: it runs all stages on the embedded digits in a few minutes.
    """


def main() -> NoReturn:
    """Entry point."""
    run_program(cli, "slimdeploy")


def run_program(command: click.Command, name: str) -> NoReturn:
    """Run `command` with the words of the command line, and exit. An error is one line, after `name`.
    Exit codes: 0 done; 1 done but failed its own check; 2 wrong input or call; 130 interrupted.
    """
    exit_code = 0
    try:
        command.main(prog_name=name, standalone_mode=False)
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        from slimdeploy.toolchain.formatting import printable

        message, exit_code = _explain(error, name)
        if reports_errors():
            click.echo(f"{name}: {printable(message)}", err=True)
    close_for_libraries()
    sys.exit(exit_code)


def _explain(error: Exception, name: str) -> tuple[str, int]:
    """One line for an `error` of the program `name`, and the exit code."""
    if isinstance(error, SlimdeployError):
        return str(error), error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message(), 2
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else name
        return " ".join(f"{error.format_message()} ({path} --help)".split()), 2
    if isinstance(error, click.ClickException):
        return error.format_message(), 2
    if isinstance(error, click.Abort):  # click raises it for EOFError too, which no prompt of ours causes
        if not isinstance(error.__cause__, EOFError):
            return "interrupted", 130
        error = error.__cause__
    if isinstance(error, ModuleNotFoundError) and (missing := missing_library(error)):
        return str(missing), missing.exit_code
    if lost := lost_worker(error):
        return str(lost), lost.exit_code
    if isinstance(error, MemoryError):
        return f"not enough memory ({shorten(error) or 'nothing more is known'})", 2
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror, 2
    return f"internal error, {type(error).__name__}: {shorten(error, 500)} (--debug shows where)", 1
