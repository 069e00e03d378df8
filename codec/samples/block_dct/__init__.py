"""The block-transform codec of images and series."""
