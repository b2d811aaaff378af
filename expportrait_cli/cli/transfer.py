"""`expportrait transfer`: a head and a driver's tracking to `.meshes.npz`, and to curves that can be edited."""

from pathlib import Path
from typing import Annotated

import typer

from expportrait_cli.artifacts import stem
from expportrait_cli.cli import options
from expportrait_cli.cli.display import Display
from expportrait_cli.config import TransferConfig


def transfer(
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="The person's .head.npz.", show_default=False)],
    driving: Annotated[Path, typer.Argument(metavar="TRACK", help="The driver's .track.npz.", show_default=False)],
    *,
    out: options.Out = None,
    method: options.Method = TransferConfig.method,
    network: options.Network = TransferConfig.network,
    absolute: options.Absolute = TransferConfig.absolute,
    neutral_frame: options.NeutralFrame = TransferConfig.neutral_frame,
    expression_scale: options.ExpressionScale = TransferConfig.expression_scale,
    pose_scale: options.PoseScale = TransferConfig.pose_scale,
    region: options.Region = TransferConfig.region,
    smooth: options.Smooth = TransferConfig.smooth,
    curves: options.CurvesFile = None,
    driver_head: Annotated[
        Path | None,
        typer.Option(
            metavar="HEAD",
            help="With --method direct: the .head.npz of the driver's clip, whose folds are copied too.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Put the driver's performance onto the person's head."""
    options.existing(head, kind="head")
    options.existing(driving, kind="track")
    path = options.result(out, f"{stem(head)}--{stem(driving)}.meshes.npz", inputs=(head, driving))
    options.check_curves(curves)
    if driver_head is not None:
        options.existing(driver_head, kind="head")
    from expportrait_cli.pipeline import steps

    config = TransferConfig(
        method=method,
        network=network,
        absolute=absolute,
        neutral_frame=neutral_frame,
        expression_scale=expression_scale,
        pose_scale=pose_scale,
        region=region,
        smooth=smooth,
    )
    with Display() as display:
        summary = steps.transfer(head, driving, path, config, display.stage, curves=curves, driver_head=driver_head)
    options.echo(path, summary, as_json=as_json)
