"""`data`: the images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.recipe.schema.base import Count, Normalize, Section, ShareOrCount

Part = Annotated[float, Field(gt=0, le=1)]
# Sources whose number of classes is known before their images are there.
KNOWN_CLASSES = {"fashion": 10, "cifar10": 10, "cifar100": 100}


class ColorJitter(Section):
    """Random changes to the colours of each training view: brightness, contrast, saturation and hue, in this order."""

    brightness: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="factor between 1 - x (at least 0) and 1 + x"
    )
    contrast: Annotated[float, Field(ge=0)] = Field(default=0.0, description="the same, about the image's mean grey")
    saturation: Annotated[float, Field(ge=0)] = Field(default=0.0, description="the same, about each pixel's grey")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="rotation of the colour circle, between -x and x of a full turn"
    )


class RandAugment(Section):
    """RandAugment (Cubuk et al. 2019) on each training view, after the colour jitter.

    Operations are drawn from 14 and applied one after the other.
    """

    operations: Annotated[int, Field(ge=1, le=14)] = Field(default=2, description="operations applied to each view")
    magnitude: Annotated[int, Field(ge=0, le=30)] = Field(
        default=9, description="strength of the operations; 30: shear 0.3, shift 45 %, rotation 30 degrees, ..."
    )


class Data(Section):
    """Where the images come from, and how they are split."""

    source: Literal["fashion", "cifar10", "cifar100", "folder", "npz", "imagenet", "webdataset"] = Field(
        description="fashion: embedded; cifar10, cifar100: through torchvision; folder: photos in class sub-folders; "
        "npz: arrays in one file; imagenet: train/<class>/*.JPEG and val/<class>/*.JPEG, decoded in training; "
        "webdataset: the same from tar shards (NAME.jpg beside NAME.cls or .json)"
    )
    root: str | None = Field(
        default=None,
        description="the npz file or the folder; relative to the recipe, by --set to the working folder, `~` expands; "
        "null: the user's cache folder, for cifar10 and cifar100; required for other sources, except fashion, which "
        "takes none",
    )
    labels: str | None = Field(
        default=None,
        description="folder: a CSV file that lists images, with the columns file, label and perhaps part (train, test, "
        "val), in any order; relative to root, and its file names relative to it; null: sub-folders are the classes",
    )
    download: bool = Field(default=False, description="let torchvision download cifar10 or cifar100 into root")
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        default=None, description="side of the network's input in pixels; null: 32, or 224 for photos"
    )
    normalize: Normalize | None = Field(
        default=None,
        description="mean and standard deviation; null: published constants of a named set, else those of the training "
        "images",
    )
    augment: Literal["crop_flip", "crop", "flip", "resized_crop", "none"] | None = Field(
        default=None,
        description="random views in training; crop: moved by up to an eighth of the side; resized_crop: a part of "
        "the image (crop_scale), flipped or not; null: crop_flip, or resized_crop for photos; imagenet and webdataset "
        "take resized_crop or none",
    )
    crop_scale: tuple[Part, Part] | None = Field(
        default=None,
        description="resized_crop: smallest and largest part of the image's area that a view shows; null: 0.08 to 1 "
        "(0.25 to 1 below 128 pixels), as in the papers, and 0.35 to 1 where the student trains for at most 20 epochs "
        "from pretrained weights",
    )
    color_jitter: ColorJitter | None = Field(
        default=None, description="random colours of training views, computed on the device; null: unchanged"
    )
    rand_augment: RandAugment | None = Field(
        default=None,
        description="RandAugment on training views, computed on the device; {}: its defaults; null: off",
    )
    validation: ShareOrCount = Field(
        default=0.1,
        description="validation images, split off the training images by class; they select the teacher and are "
        "evaluated during training",
    )
    labelled: Count | None = Field(
        default=None,
        description="keep the labels of only so many images to train on, drawn by class; for the others the teacher's "
        "answer is all that the student learns from; null: all that have a label",
    )
    unlabelled: str | None = Field(
        default=None,
        description="folder: a folder of further images without labels, at any depth, for which the teacher answers; "
        "relative to the recipe, by --set to the working folder; null: none",
    )
    test: ShareOrCount = Field(
        default=0.2,
        description="only for a folder without a test sub-folder: about so many test images, for the final validation; "
        "a hash of its pixels decides about each image",
    )
    group: str | None = Field(
        default=None,
        description="folder: images that belong together, such as frames of a clip, stay on one side of every split. "
        "parent: those of one parent folder; a regular expression on the path below root, such as `(clip\\d+)_`: those "
        "with the same first group or match; time_gap:SECONDS: photos of a series by their EXIF times; column:NAME: by "
        "a column of a list of labels; null: every image is on its own",
    )
    calibration: Count = Field(default=512, description="how many training images determine the int8 ranges")
    workers: Count | None = Field(
        default=None,
        description="imagenet, webdataset: processes that decode images during training; does not change results; "
        "null: one per core, at most 32",
    )
    shards_at_once: Count | None = Field(
        default=None,
        description="webdataset: shuffle the images of at most so many shards at a time and prefetch the next "
        "shards from start to end, for shards on hard disks or a network; null: shuffle all images and "
        "read them in random order",
    )
    split_seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the splits and of the limits below")
    max_unreadable: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01,
        description="folder: share of images that may be unreadable (three always may, unless it is 0); they are "
        "skipped; above 0.1 also the share of a class's files that may be no images",
    )
    bits: Annotated[int, Field(ge=1, le=32)] | None = Field(
        default=None,
        description="folder: bits of grey images with more than 8, so that white is the largest number of so many; "
        "null: the largest value in the training images, rounded up to a power of two",
    )
    limit_train: Count | None = Field(
        default=None,
        description="use only so many training images (by class, seeded), for a quick trial; null: all",
    )
    limit_test: Count | None = Field(
        default=None, description="use only so many test images (by class, seeded), for a quick trial; null: all"
    )

    @property
    def photos(self) -> bool:
        """Return whether the images are files of any size."""
        return self.source in ("folder", "imagenet", "webdataset")

    @property
    def side(self) -> int:
        """Return the side in pixels of the networks' input."""
        return self.image_size or (224 if self.photos else 32)

    @property
    def views(self) -> str:
        """Return the name of the training views."""
        return self.augment or ("resized_crop" if self.photos else "crop_flip")
