"""Data: a folder in VOC's layout, samples and batches, augmentation. Knows files, knows no network."""

from importlib import import_module

_HOMES = {
    "check_split": "check",
    "IGNORE": "classes",
    "VOC_CLASSES": "classes",
    "Fault": "faults",
    "ImageContext": "readers",
    "VOCFolder": "folder",
    "read_image": "folder",
    "palette": "masks",
    "read_mask": "masks",
    "write_mask": "masks",
    "Batch": "samples",
    "DrawSampler": "samples",
    "MaskBatch": "samples",
    "MaskSample": "samples",
    "PseudoMaskSet": "samples",
    "Sample": "samples",
    "TrainingSet": "samples",
    "collate": "samples",
    "collate_masks": "samples",
    "SuperpixelSettings": "superpixels",
    "make_superpixels": "superpixels",
    "read_superpixels": "superpixels",
    "Regions": "transforms",
    "check_scales": "transforms",
    "denormalize": "transforms",
    "normalize": "transforms",
    "resize_image": "transforms",
    "scale_image": "transforms",
    "train_transform": "transforms",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    # Names are fetched when asked for: whoever only writes masks (a process pool, the toy generator) need not
    # wait seconds for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
