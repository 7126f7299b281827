"""Data that the kit reads, made or fetched once: toy scenes, VOC 2012 + SBD, COCO 2014, own images."""
