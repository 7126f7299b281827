"""The network trained on pseudo masks: DeepLab, multi-scale testing, packing for the VOC server."""

from wsss_lib.segment.deeplab import DeepLab
from wsss_lib.segment.predict import segment
from wsss_lib.segment.voc_server import pack

__all__ = ["DeepLab", "pack", "segment"]
