"""`data`: the pictures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.recipe.schema.base import Count, Normalize, Section, ShareOrCount

KNOWN_CLASSES = {"fashion": 10, "cifar10": 10, "cifar100": 100}  # of sources whose pictures may not be here yet


class ColorJitter(Section):
    """Colours of each training view changed: brightness, contrast, saturation, hue, in this order, each by a draw of its own."""

    brightness: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="factor between 1 - x (at least 0) and 1 + x"
    )
    contrast: Annotated[float, Field(ge=0)] = Field(default=0.0, description="likewise, about the picture's mean grey")
    saturation: Annotated[float, Field(ge=0)] = Field(default=0.0, description="likewise, about each pixel's grey")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="turn of the colour circle, between -x and x of it"
    )


class RandAugment(Section):
    """RandAugment (Cubuk et al. 2019) on each training view, after the colour jitter: operations drawn from 14, one after the other."""

    operations: Annotated[int, Field(ge=1, le=14)] = Field(
        default=2, description="how many operations a view goes through"
    )
    magnitude: Annotated[int, Field(ge=0, le=30)] = Field(
        default=9, description="how strong they are; 30: shear 0.3, shift 45 %, rotation 30 degrees, ..."
    )


class Data(Section):
    """Where the pictures come from and how they are split by purpose."""

    source: Literal["fashion", "cifar10", "cifar100", "folder", "npz", "imagenet", "webdataset"] = Field(
        description="fashion: embedded; cifar10, cifar100: through torchvision; folder: photos in class sub-folders; npz: arrays in one file; imagenet: "
        "train/<class>/*.JPEG and val/<class>/*.JPEG, decoded in training; webdataset: the same from tar shards (NAME.jpg beside NAME.cls or .json)"
    )
    root: str | None = Field(
        default=None,
        description="the npz file, or the folder; relative to the recipe, `~` expands; "
        "null for cifar10 and cifar100: the user's cache folder; the others need it, fashion takes none",
    )
    download: bool = Field(default=False, description="let torchvision download cifar10 / cifar100 into root")
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        default=None, description="side of the input in pixels; null: 32, or 224 for photos"
    )
    normalize: Normalize | None = Field(
        default=None, description="null: published constants of a named set, else of the training pictures"
    )
    augment: Literal["crop_flip", "crop", "flip", "resized_crop", "none"] | None = Field(
        default=None,
        description="random views in training; crops move by an eighth of the side; resized_crop: 8 to 100 % of the picture, flipped or "
        "not; null: crop_flip, or resized_crop for photos; imagenet and webdataset: resized_crop or none",
    )
    color_jitter: ColorJitter | None = Field(
        default=None, description="change the colours of training views, on the device; null: not at all"
    )
    rand_augment: RandAugment | None = Field(
        default=None,
        description="distort training views by RandAugment, on the device; {}: its defaults; null: not at all",
    )
    validation: ShareOrCount = Field(
        default=0.1,
        description="carved from the training pictures, stratified; selects the teacher and is watched in training",
    )
    test: ShareOrCount = Field(
        default=0.2,
        description="folder without a test sub-folder only: what is carved off, stratified, for the final validation",
    )
    calibration: Count = Field(
        default=512, description="how many training pictures set the int8 ranges; never validation or test pictures"
    )
    workers: Count | None = Field(
        default=None,
        description="imagenet, webdataset: processes that decode pictures in training; changes no number; null: one a core, at most 32",
    )
    shards_at_once: Count | None = Field(
        default=None,
        description="webdataset: the pictures of at most so many shards are mixed at a time, and the next shards read ahead from start to end: "
        "for shards on spinning disks or a network; null: all pictures are mixed, and read in random order",
    )
    split_seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the splits and of the limits below")
    max_unreadable: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01, description="folder: share of pictures that may be unreadable; they are skipped"
    )
    limit_train: Count | None = Field(
        default=None,
        description="use only so many training pictures (stratified, seeded), for a quick trial; null: all",
    )
    limit_test: Count | None = Field(
        default=None, description="use only so many test pictures (stratified, seeded), for a quick trial; null: all"
    )

    @property
    def photos(self) -> bool:
        """Whether the pictures are files of any size."""
        return self.source in ("folder", "imagenet", "webdataset")

    @property
    def side(self) -> int:
        """Side in pixels that the networks see."""
        return self.image_size or (224 if self.photos else 32)

    @property
    def views(self) -> str:
        """The name of the training views."""
        return self.augment or ("resized_crop" if self.photos else "crop_flip")
