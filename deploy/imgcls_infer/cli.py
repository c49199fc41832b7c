"""imgcls-infer: options -> a Predictor -> rows. numpy and onnxruntime are imported in the command's body."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from imgcls_infer import __version__
from imgcls_infer.errors import InferError, printable

_WIDEST = 60

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcls_infer.predictor import Prediction, Predictor
    from imgcls_infer.selfcheck import Check


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: imgcls-infer --model cnn.onnx --top-k 3 cat.jpg dog.png",
)
@click.argument("images", nargs=-1, metavar="IMAGE...", type=click.Path(path_type=str))
@click.option(
    "--model", metavar="FILE", help="Model exported by imgcls. Default: $IMGCLS_MODEL, else the built-in one."
)
@click.option("--top-k", default=1, show_default=True, type=click.IntRange(min=1), help="Classes to show per picture.")
@click.option(
    "--provider",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Execution provider. cuda is an error where CUDA does not work, never the CPU.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the CPUs this process may use.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--info", is_flag=True, help="Say what the model says of itself instead, and what runs it.")
@click.option(
    "--self-check", "check", is_flag=True, help="Prove instead that this machine answers as PyTorch did; else exit 1."
)
@click.version_option(__version__, prog_name="imgcls-infer")
def command(
    images: tuple[str, ...],
    model: str | None,
    top_k: int,
    provider: str,
    threads: int | None,
    as_json: bool,
    info: bool,
    check: bool,
) -> None:
    """Classify pictures with a model exported by imgcls, on onnxruntime alone.

    Exits with 1 if a picture could not be classified; the others are classified all the same.
    """
    _require_one_task(images, info, check)
    try:
        predictor = _open(model, provider, threads)
    except InferError as error:
        raise SystemExit(_fail(str(error))) from None
    if info:
        _show_info(predictor, as_json)
        return
    if check:
        _self_check(predictor, as_json)
        return
    rows: list[dict[str, Any]] = []
    widths = (_width(images), _width(predictor.manifest.classes))
    for image in images:
        row = _classify(predictor, image, top_k)
        rows.append(row)
        if not as_json:
            _show(row, *widths)
    if as_json:
        document = {"provider": predictor.provider, "results": rows}
        click.echo(json.dumps(document, ensure_ascii=True, indent=2))
    failed = sum("error" in row for row in rows)
    if failed:
        raise SystemExit(_fail(f"{failed} of {len(rows)} pictures could not be classified"))


def _require_one_task(images: tuple[str, ...], info: bool, check: bool) -> None:
    if info and check:
        raise click.UsageError("--info and --self-check exclude each other.")
    if images and (info or check):
        raise click.UsageError(f"{'--info' if info else '--self-check'} takes no pictures.")
    if not (images or info or check):
        raise click.UsageError("Missing argument 'IMAGE...'.")


def _open(model: str | None, provider: str, threads: int | None) -> Predictor:
    from imgcls_infer.predictor import Predictor

    chosen = model or os.environ.get("IMGCLS_MODEL") or None
    predictor = Predictor(chosen, provider=provider, threads=threads)
    if chosen is None:
        click.echo(f"note: built-in model ({', '.join(predictor.manifest.classes)}); --model takes yours", err=True)
    if predictor.note:
        click.echo(f"note: {predictor.note}", err=True)
    return predictor


def _show_info(predictor: Predictor, as_json: bool) -> None:
    batch = predictor.batch or "any number"
    known = {"provider": predictor.provider, "batch": batch, "golden_samples": len(predictor.golden)}
    if as_json:
        click.echo(json.dumps({**known, "manifest": predictor.manifest.to_dict()}, ensure_ascii=True, indent=2))
        return
    for name, value in known.items():
        click.echo(f"{name}: {value}")
    for line in predictor.manifest.lines():
        click.echo(line)


def _self_check(predictor: Predictor, as_json: bool) -> None:
    """A table or a JSON document; SystemExit(1) where a check failed or none could be made."""
    from imgcls_infer.selfcheck import self_check

    try:
        result = self_check(predictor)
    except InferError as error:
        raise SystemExit(_fail(str(error))) from None
    if as_json:
        document = {
            "provider": predictor.provider,
            "passed": bool(result),
            "broken": result.broken(),
            "tolerance": result.tolerance,
            "verdicts": result.verdicts,
            "checks": [vars(found) for found in result.checks],
        }
        click.echo(json.dumps(document, ensure_ascii=True, indent=2))
    else:
        for found in result.checks:
            click.echo(_check_line(found))
        for line in result.verdicts:
            click.echo(line)
    if not result:
        reason = f"does not hold here: {', '.join(result.broken())}" if result.checks else "can't be checked"
        raise SystemExit(_fail(f"the contract {reason}"))


def _check_line(found: Check) -> str:
    """A row of the self-check's table."""
    difference = "-" if found.difference is None else f"{found.difference:.1e}"
    verdict = f"FAILED: {found.problem}" if found.problem else "ok"
    return f"{found.half:<25} {printable(found.name):<16} max |dp| {difference:>8}  {printable(verdict)}"


def _classify(predictor: Predictor, image: str, top_k: int) -> dict[str, Any]:
    try:
        prediction: Prediction = predictor.predict(image)
    except InferError as error:
        return {"image": printable(image), "error": str(error)}
    top = [{"label": label, "probability": probability} for label, probability in prediction.top(top_k)]
    return {"image": printable(image), **top[0], "top": top}


def _width(names: Sequence[str]) -> int:
    """The longest name's length, so that rows line up; one very long name does not push all others off the screen."""
    return min(max(len(printable(name)) for name in names), _WIDEST)


def _show(row: dict[str, Any], image_width: int, class_width: int) -> None:
    if "error" in row:
        click.echo(f"error: {row['error']}", err=True)
        return
    answers = (f"{printable(entry['label']):<{class_width}} {entry['probability']:>7.2%}" for entry in row["top"])
    click.echo(f"{row['image'] + ':':<{image_width + 1}} {'   '.join(answers)}")


def _fail(message: str) -> int:
    click.echo(f"error: {message}", err=True)
    return 1


def main() -> None:
    """The console script. (`imgcls-infer ... | head` is click's business: it takes EPIPE for exit code 1.)"""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal or pipe can't encode is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    command()
