"""Turn 10-20 selfies into professional headshots that look like you; no photo leaves the machine.

The public verbs are loaded on first use, so importing the package is quick and loads no torch.
"""

from headshotkit.core import __version__, runtime

_HOMES = {
    "check_photos": "photos.check",
    "override_verdict": "photos.override",
    "find_token": "dataset.tokens",
    "prepare_dataset": "dataset.build",
    "edit_caption": "dataset.captions",
    "crop_folder": "dataset.crops",
    "train_lora": "training.train",
    "export_lora": "training.export",
    "pick_lora": "generation.picking",
    "generate_headshots": "generation.headshots",
    "render_pictures": "generation.pictures",
    "PictureRequest": "generation.pictures",
    "restore_headshots": "restoration.restore",
    "evaluate_run": "evaluation.evaluate",
    "measure_leak": "evaluation.forgetting",
    "compare_runs": "evaluation.compare",
    "build_gallery": "delivery.gallery",
    "make_headshots": "pipeline",
    "Run": "core.run",
    "CheckConfig": "config",
    "PrepareConfig": "config",
    "CropConfig": "config",
    "TrainConfig": "config",
    "PickConfig": "config",
    "GenerateConfig": "config",
    "RestoreConfig": "config",
    "RunSettings": "config",
    "HeadshotError": "core.errors",
}
__all__ = [*_HOMES, "__version__"]

runtime.set_environment()  # torch reads it only when it is imported, so it can't wait for a verb


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'headshotkit' has no attribute {name!r}")
    return getattr(runtime.import_whole(f"headshotkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
