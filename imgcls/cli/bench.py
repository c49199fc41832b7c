"""imgcls bench: everything that runs a checkpoint, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imgcls.cli.groups import GroupedCommand
from imgcls.cli.options import BARE, DESCRIPTION, FILE, Whole, chosen_pictures, comparison_options, open_checkpoint
from imgcls.cli.output import is_quiet, is_verbose, show_figures, show_json, verbosity, wrapped, wrote
from imgcls.errors import ImgclsError

if TYPE_CHECKING:
    from imgcls.bench import BenchResult


_GROUPS = {
    "Pictures": ("data_dir", "run_dir", "pictures"),
    "Measurement": ("providers", "threads", "batch_size", "repeats"),
    "Output": ("plot", "as_json", "markdown", "quiet", "verbose"),
    **BARE,
}


@click.command(
    "bench",
    cls=GroupedCommand,
    groups=_GROUPS,
    epilog="Example: imgcls bench models/cnn.pth models/cnn.onnx models/cnn.pt --data data/test",
)
@comparison_options
@click.option("--batch-size", "--batch", type=Whole(1, 65536), default=64, show_default=True, help="For throughput.")
@click.option("--threads", type=Whole(1, 1024), default=1, show_default=True, help="CPU threads of each runtime.")
@click.option("--pictures", type=Whole(min=1), default=256, show_default=True, help="Pictures to use.")
@click.option(
    "--repeats",
    type=Whole(min=1),
    default=5,
    show_default=True,
    help="How often to open each file, start each process, and classify the pictures.",
)
@click.option("--plot", type=FILE, metavar="FILE.png", help="Also draw the figures.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output instead of the table.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table on standard output instead.")
@verbosity("the figures", "what the machine is")
def command(
    checkpoint: Path,
    models: tuple[Path, ...],
    data_dir: Path | None,
    run_dir: Path | None,
    plot: Path | None,
    as_json: bool,
    markdown: bool,
    **options: Any,
) -> None:
    """Measure exported files and PyTorch eager side by side, in turns, on the same pictures.

    File size, load time, cold start and peak memory of a whole process, latency of one picture, throughput in batches,
    and parity. Exits with 1 if a file does not answer as the checkpoint does.
    """
    from imgcls.config import BenchConfig
    from imgcls.data.folder import comparison_folder
    from imgcls.system.files import require_writable

    if as_json and markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    if plot is not None:
        require_writable(plot)
    described = {name: options.pop(name) for name in DESCRIPTION}
    loaded = open_checkpoint(checkpoint, **described)
    folder = chosen_pictures(loaded, data_dir, run_dir, comparison_folder)
    # late, since they load onnx, which none of the errors above needs
    from imgcls.bench import bench as run
    from imgcls.networks.registry import is_outside
    from imgcls.report.tables import bench_markdown

    arch = described["arch"] if is_outside(loaded.manifest.arch) else None
    result = run(loaded, BenchConfig(checkpoint, models, arch=arch, **options), folder)

    if as_json:
        show_json(result.to_dict())
    elif markdown:
        click.echo(bench_markdown(result), nl=False)
    else:
        _show_bench(result)
    if plot is not None:
        from imgcls.report.bench import plot_bench

        plot_bench(result, plot)
        wrote(str(plot), as_json or markdown)
    if not result:
        failed = ", ".join(row.file for row in result.rows if not row.parity)
        raise ImgclsError(f"{failed}: does not answer as its checkpoint does; imgcls verify --bisect says where")


def _show_bench(result: BenchResult) -> None:
    from imgcls_infer.errors import printable

    from imgcls.report.tables import bench_cells, bench_conditions, short_names

    files = short_names([row.file for row in result.rows])
    heads = [f"{printable(file)}\n{row.runtime}\n{row.precision}" for file, row in zip(files, result.rows, strict=True)]
    rows = [{name: "\n".join(filter(None, cell)) for name, cell in figures.items()} for figures in bench_cells(result)]
    show_figures(heads, rows, 200)
    if not is_quiet():
        click.echo()
        wrapped(bench_conditions(result))
    if is_verbose():
        wrapped(", ".join(f"{name} {value}" for name, value in result.machine.items()))
