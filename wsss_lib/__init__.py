"""WSSS kit: weakly supervised semantic segmentation, from image-level labels to pixel masks.

Import the parts by name (`from wsss_lib import metrics`); nothing heavy is imported here.
"""

__version__ = "0.1.0"
