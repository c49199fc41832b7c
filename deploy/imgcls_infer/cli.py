"""imgcls-infer: options -> a Predictor -> rows. numpy and onnxruntime are imported in the command's body."""

from __future__ import annotations

import errno
import gc
import io
import math
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imgcls_infer import __version__
from imgcls_infer.cpus import available_cpus
from imgcls_infer.errors import ImageError, InferError, counted, printable

_FLUSH_EVERY = 0.05  # seconds
_WRITE_ERRORS = {errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC}  # closed, full, too large, broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imgcls_infer.manifest import Acceptance
    from imgcls_infer.predictor import Prediction, Predictor
    from imgcls_infer.rows import Answering
    from imgcls_infer.selfcheck import Check

    Answers = Iterator[tuple[str, Prediction | ImageError]]


class Number(click.FloatRange):
    """The type of every number that is not whole: within its range, and finite (a comparison lets nan through)."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The value as a float. A number out of range, nan or infinite is a usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


Command = TypeVar("Command", bound="Callable[..., Any]")


def answer_options(function: Command) -> Command:
    """Which pictures of a folder are classified, when an answer counts, and in which form the answers are printed."""
    options = (
        click.option("--recursive", "-r", is_flag=True, help="Also take the pictures in the folders below a folder."),
        click.option(
            "--top-k", default=1, show_default=True, type=click.IntRange(min=1), help="Classes to show per picture."
        ),
        click.option(
            "--threshold",
            type=Number(0, 1),
            help="Less probable answers are called unsure. Default: the model's own limit, if any.",
        ),
        click.option(
            "--accept-all",
            is_flag=True,
            help="Name the most probable class even where the model's limits say otherwise.",
        ),
        click.option("--json", "form", flag_value="json", help="One JSON document on standard output."),
        click.option("--jsonl", "form", flag_value="jsonl", help="A JSON object a line."),
        click.option("--csv", "form", flag_value="csv", help="Comma-separated values, with a header."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  imgcls-infer --model cnn.onnx --top-k 3 cat.jpg dog.png
  imgcls-infer --recursive --csv photos > photos.csv
  find photos -newer last -print0 | imgcls-infer --jsonl -""",
)
@click.argument("images", nargs=-1, metavar="IMAGE...", type=click.Path(path_type=str, allow_dash=True))
@click.option(
    "--model", metavar="FILE", help="Model exported by imgcls. Default: $IMGCLS_MODEL, else the built-in one."
)
@answer_options
@click.option(
    "--provider",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Execution provider: auto (CUDA where it works, else the CPU), or any that this onnxruntime has: cpu, cuda, "
    "openvino, coreml ... If it does not work, that is an error: the CPU never takes its place.",
)
@click.option("--device-id", type=click.IntRange(min=0), help="Number of the accelerator, if there are several.")
@click.option("--strict", is_flag=True, help="Fail if the accelerator leaves a part of the model to the CPU.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the CPUs this process may use.")
@click.option("--info", is_flag=True, help="Print the model's manifest and provider, then exit.")
@click.option(
    "--self-check", "check", is_flag=True, help="Check that this machine answers as PyTorch did, then exit: 1 if not."
)
@click.version_option(__version__, prog_name="imgcls-infer")
def command(
    images: tuple[str, ...],
    model: str | None,
    recursive: bool,
    top_k: int,
    form: str | None,
    info: bool,
    check: bool,
    threads: int | None,
    **options: Any,
) -> None:
    """Classify pictures with a model exported by imgcls, on onnxruntime alone.

    IMAGE is a picture, a folder of pictures, a pattern in quotes ('photos/**/*.jpg'), or - for standard input: a
    picture, or a list of paths (a line each, or ended by NUL as find -print0 does).

    Some models know when their answer does not count: then it is "unsure" or "none of these".

    Exits with 1 if a picture could not be classified; all others are still classified.
    """
    _require_one_task(images, info, check)
    require_one_rule(options["threshold"], options["accept_all"])
    try:
        workers = threads or available_cpus()
        predictor = _open_predictor(model, threads=_threads_inside(images, workers), **options)
        if info:
            _show_info(predictor, form == "json")
        elif check:
            _self_check(predictor, form == "json")
        else:
            answers = _answers(predictor, images, recursive, workers)
            classify(predictor, images, answers, top_k, form or "table")
    except InferError as error:
        raise failure(str(error)) from None


def require_one_rule(threshold: float | None, accept_all: bool) -> None:
    """Raises UsageError where a limit is given, and none is to count."""
    if accept_all and threshold is not None:
        raise click.UsageError("--accept-all and --threshold exclude each other.")


def _require_one_task(images: tuple[str, ...], info: bool, check: bool) -> None:
    if info and check:
        raise click.UsageError("--info and --self-check exclude each other.")
    if images and (info or check):
        raise click.UsageError(f"{'--info' if info else '--self-check'} takes no pictures.")
    if not (images or info or check):
        raise click.UsageError("Missing argument 'IMAGE...'.")


def _threads_inside(images: tuple[str, ...], workers: int) -> int:
    """Threads inside the network: a few files share the CPUs, and each worker of a folder or list uses one."""
    few = len(images) < workers and all(map(os.path.isfile, images))
    return workers // max(1, len(images)) if few else 1


def _open_predictor(model: str | None, **options: Any) -> Predictor:
    """options: what Predictor takes beside the model."""
    from imgcls_infer.predictor import Predictor

    chosen = model or os.environ.get("IMGCLS_MODEL") or None
    predictor = Predictor(chosen, **options)
    if chosen is None:
        click.echo(f"note: built-in model ({', '.join(predictor.manifest.classes)}); --model takes yours", err=True)
    if predictor.note:
        click.echo(f"note: {predictor.note}", err=True)
    return predictor


def _show_info(predictor: Predictor, as_json: bool) -> None:
    import json

    known = {
        "provider": predictor.provider,
        "why": predictor.why,
        "threads": predictor.threads,
        "batch": predictor.batch or "any number",
        "golden_samples": len(predictor.golden),
    }
    if as_json:
        click.echo(json.dumps({**known, "manifest": predictor.manifest.to_dict()}, ensure_ascii=True, indent=2))
        return
    for name, value in known.items():
        click.echo(f"{name}: {value}")
    if predictor.manifest.acceptance:
        click.echo(f"answers: {_rules_line(predictor.manifest.acceptance)}")
    for line in predictor.manifest.lines():
        click.echo(line)


def _rules_line(acceptance: Acceptance) -> str:
    """The model's rules in words, with the shares of held-out pictures that they were set for."""
    rules = []
    if acceptance.novelty is not None:
        aim = _aim(acceptance.known_share, "of the known")
        rules.append(f"none of these above novelty {acceptance.novelty:.4g}{aim}")
    if acceptance.probability is not None:
        aim = _aim(acceptance.right_share, "right")
        rules.append(f"unsure below {100 * acceptance.probability:.4g} %{aim}")
    return ", ".join(rules)


def _aim(share: float | None, what: str) -> str:
    return "" if share is None else f" (set for {100 * share:.4g} % {what})"


def _self_check(predictor: Predictor, as_json: bool) -> None:
    """Print a table or a JSON document. SystemExit(1) if a check failed or none could be made."""
    import json

    from imgcls_infer.selfcheck import self_check

    result = self_check(predictor)
    if as_json:
        document = {
            "provider": predictor.provider,
            "passed": bool(result),
            "broken": result.broken(),
            "tolerance": result.tolerance,
            **({} if (limit := result.novelty_tolerance) is None else {"novelty_tolerance": limit}),
            "verdicts": result.verdicts,
            "checks": [found.to_dict() for found in result.checks],
        }
        click.echo(json.dumps(document, ensure_ascii=True, indent=2))
    elif result.checks:
        for found in result.checks:
            click.echo(_check_line(found))
        for line in result.verdicts:
            click.echo(line)
    if not result.checks:
        raise failure(
            "nothing to compare with: the model file carries no golden samples; export it again without --golden 0, or "
            "with --samples FOLDER"
        )
    if not result:
        raise failure(f"the contract does not hold here: {', '.join(result.broken())}")


def _check_line(found: Check) -> str:
    """A row of the self-check's table."""
    difference = "-" if found.difference is None else f"{found.difference:.1e}"
    novelty = "" if found.novelty is None else f"  |dn| {found.novelty:.1e}"
    verdict = f"FAILED: {found.problem}" if found.problem else "ok"
    return f"{found.half:<25} {printable(found.name):<16} max |dp| {difference:>8}{novelty}  {printable(verdict)}"


def classify(predictor: Answering, images: tuple[str, ...], answers: Answers, top_k: int, form: str) -> None:
    """Print a row for each picture. SystemExit(1) if some could not be classified. images: as they were given."""
    from imgcls_infer.rows import WRITERS

    writer = WRITERS[form](sys.stdout, predictor, images, top_k)
    count = failed = 0
    for name, answer in _shown(answers):
        row = _row(name, answer, top_k)
        writer.row(row)
        count += 1
        failed += "error" in row
    writer.end()
    sys.stdout.flush()
    if failed:
        raise failure(f"{failed:,} of {counted(count, 'picture')} could not be classified")


def _answers(predictor: Predictor, images: tuple[str, ...], recursive: bool, workers: int) -> Answers:
    """(name, answer) in order. A single picture, which is what most commands are given, needs no stream."""
    if len(images) == 1 and os.path.isfile(images[0]):
        try:
            yield images[0], predictor.predict(images[0])
        except ImageError as error:
            yield images[0], error
        return
    from imgcls_infer.sources import expand, name_of

    gc.enable()
    _end_on_sigterm()
    for source, answer in predictor.stream(expand(images, recursive, read_stdin), workers, processes=True):
        yield name_of(source), answer


def read_stdin(size: int) -> bytes:
    """Read unbuffered: it returns what is there at once, and a thread that waits here holds no lock."""
    return os.read(0, size)


def _end_on_sigterm() -> None:
    """Have SIGTERM end a long run as Ctrl-C does: finished rows are written, and no thread is cut off."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _shown(answers: Answers) -> Answers:
    """Pass the answers on, flush standard output between them, and count them on a terminal.

    It does not flush after each row: a flush releases the interpreter's lock, and thumbnails come 10,000 a second.
    """
    import time

    counting = sys.stderr.isatty() and not sys.stdout.isatty()
    start = flushed = time.monotonic()
    for count, answer in enumerate(answers, 1):
        yield answer
        now = time.monotonic()
        if now - flushed > _FLUSH_EVERY:
            flushed = now
            sys.stdout.flush()
            if counting:
                click.echo(f"\r{count:,} pictures, {count / (now - start):,.0f}/s\x1b[K", err=True, nl=False)
    if counting and flushed > start:
        click.echo("\r\x1b[K", err=True, nl=False)


def _row(name: str, answer: Prediction | ImageError, top_k: int) -> dict[str, Any]:
    if isinstance(answer, ImageError):
        return {"image": name, "error": str(answer)}
    return {"image": name, **answer.to_dict(top_k)}


def failure(message: str) -> SystemExit:
    """Print a known error on standard error, and give the exit with code 1 to raise."""
    click.echo(f"error: {message}", err=True)
    return SystemExit(1)


def main() -> None:
    """The console script."""
    gc.disable()  # while modules load there is nothing to collect, and looking for garbage takes a tenth of the start
    try:
        run_command(command)
    finally:
        gc.freeze()  # the end of the process frees everything at once


def run_command(command: Callable[[], object]) -> None:
    """Run a click command whatever its standard streams are: closed, full, or of an encoding that lacks a character.

    Standard output that can't be written is one line and exit code 1 (click itself does so for EPIPE, as in
    `imgcls-infer ... | head`). Standard error that can't be written does not end the command.
    """
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            command()
        except SystemExit as end:
            if not end.code:  # a known error stays the only one
                sys.stdout.flush()
            raise
    except OSError as error:  # of standard output: those of pictures, models and sockets are translated elsewhere
        if error.errno not in _WRITE_ERRORS or error.filename is not None:
            raise
        raise failure(f"standard output can't be written ({error.strerror})") from None
    finally:
        _let_go_of_output()


def _let_go_of_output() -> None:
    """Flush standard output. If that fails, discard what is left: at exit the interpreter would fail on it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """Open the standard streams that are closed (`>&-`); otherwise the next file opened would become one of them.

    Then standard input is empty, writing to standard output fails, and standard error is discarded.
    """
    for number, mode in enumerate([os.O_RDONLY, os.O_RDONLY, os.O_WRONLY]):
        if not _is_open(number):
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    errors = io.BufferedWriter(_Forgiving(2, "w", closefd=False))
    encoding = None if sys.stderr is None else sys.stderr.encoding
    sys.stderr = io.TextIOWrapper(errors, encoding, errors="backslashreplace", line_buffering=True)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


class _Forgiving(io.FileIO):
    """A file that drops what can't be written."""

    def write(self, data: Any) -> int:
        """The number of bytes written or dropped."""
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)
