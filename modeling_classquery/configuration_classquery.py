"""Configuration of the ClassQuery video action detector and of its backbones."""

import math
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .saving_classquery import AUTO_MAP, PIPELINES, SavedWithCode


_IS_REMOTE_CODE = __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")

# The values that put the oddities of the released network right.
CORRECTED = {
    "sampling_offset_order": "geometric",
    "sine_frequencies": "paired",
    "resampling_grid": "pixel_centers",
    "resampled_position": "nearest",
    "class_attention_heads": "interleaved",
    "class_convolutions": "separate",
    "class_readout": "per_class",
    "padding": "masked",
    "box_modulation": "clamped",
}

# Far beyond any model of videos: a file that asks for more is damaged, or made to take all memory or time.
MAX_LAYERS, MAX_SIZE, MAX_POSITION_VALUES = 256, 2**18, 2**27

_AT_LEAST_ONE = (
    "num_frames",
    "frame_stride",
    "num_queries",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "encoder_n_points",
)
_NOT_NEGATIVE = (
    "class_cost",
    "bbox_cost",
    "giou_cost",
    "class_loss_coefficient",
    "bbox_loss_coefficient",
    "giou_loss_coefficient",
    "actor_loss_coefficient",
    "eos_coefficient",
    "positive_weight",
    "focal_gamma",
    "denoising_groups",
)


@strict
class ClassQueryViTConfig(PreTrainedConfig):
    r"""
    Configuration of the video ViT backbone. The defaults are the published ViT-B (VideoMAE pre-training).

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the tokens; a multiple of 4, so that the feature pyramid can halve it twice.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of pre-norm transformer blocks.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads of each block.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the feed-forward layers.
        patch_size (`int`, *optional*, defaults to 16):
            Height and width of a patch in pixels. Remainder pixels on the right and at the bottom are dropped.
        tubelet_size (`int`, *optional*, defaults to 2):
            Number of frames of a patch.
        drop_path_rate (`float`, *optional*, defaults to 0.2):
            Stochastic depth rate of the last block; it grows linearly from 0 at the first.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the layer norms.
        position_grid (`list[int]`, *optional*, defaults to `[14, 14]`):
            Height and width, in patches, of the sine table of positions. Other frame sizes interpolate it.
        position_table (`"released"` or `"factorized"`, *optional*, defaults to `"released"`):
            `"released"`: sine of the one-dimensional index of a token, as in VideoMAE; it serves clips of `num_frames`
            frames only. `"factorized"`: sines of its time, row and column side by side, in a quarter, three eighths
            and three eighths of the width; other numbers of frames interpolate it, too.
    """

    model_type = "classquery_vit"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    patch_size: int = 16
    tubelet_size: int = 2
    drop_path_rate: float | int = 0.2
    layer_norm_eps: float = 1e-6
    position_grid: list[int] | tuple[int, ...] = (14, 14)
    position_table: Literal["released", "factorized"] = "released"

    def validate_architecture(self):
        """Check the ranges of the fields and the relations between them."""
        _check_sizes(self)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "tubelet_size"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "drop_path_rate", 0 <= self.drop_path_rate <= 1, "between 0 and 1")
        _require_multiple("hidden_size", self.hidden_size, 4, "the feature pyramid halves it twice")
        _require_multiple("hidden_size", self.hidden_size, self.num_attention_heads, "it is split into heads")
        if self.position_table == "factorized":
            _require_multiple("hidden_size", self.hidden_size, 8, "the factorized table splits it 2:3:3")
        if len(self.position_grid) != 2 or min(self.position_grid) < 1:
            raise ValueError(f"`position_grid` is (height, width) in patches, got {self.position_grid!r}")


@strict
class ClassQueryCSNConfig(PreTrainedConfig):
    r"""
    Configuration of the ir-CSN backbone. The defaults are the published CSN-152; CSN-50 has depths (3, 4, 6, 3).

    Args:
        depths (`list[int]`, *optional*, defaults to `[3, 8, 36, 3]`):
            Number of blocks of each of the four stages.
        last_stride (`bool`, *optional*, defaults to `False`):
            Whether the last stage halves height and width once more.
        freeze_stages (`int`, *optional*, defaults to 0):
            How many parts are not trained and keep their batch norms in evaluation mode, counted from the input: the
            stem, then the stages.
        freeze_batch_norm (`bool`, *optional*, defaults to `False`):
            Whether all batch norms stay in evaluation mode.
    """

    model_type = "classquery_csn"

    depths: list[int] | tuple[int, ...] = (3, 8, 36, 3)
    last_stride: bool = False
    freeze_stages: int = 0
    freeze_batch_norm: bool = False

    def validate_architecture(self):
        """Check the relations between the fields."""
        _check_sizes(self)
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"`depths` must hold four positive numbers of blocks, got {self.depths!r}")
        _require(self, "freeze_stages", 0 <= self.freeze_stages <= 5, "between 0 and 5")


# Ours, and those of transformers whose tokens become a map.
BACKBONE_TYPES = (ClassQueryViTConfig.model_type, ClassQueryCSNConfig.model_type, "videomae", "vjepa2")


@strict
class ClassQueryConfig(SavedWithCode, PreTrainedConfig):
    r"""
    Configuration of [`ClassQueryForVideoActionDetection`]. The defaults are the published AVA v2.2 model with ViT-B.

    What differs between data sets is a value here, never a branch on a name in the model or the loss.

    Args:
        backbone_config (`ClassQueryViTConfig`, `ClassQueryCSNConfig`, `VideoMAEConfig`, `VJEPA2Config` or `dict`,
            *optional*): Configuration of the backbone.
        num_frames (`int`, *optional*, defaults to 16):
            Frames of a clip.
        frame_stride (`int`, *optional*, defaults to 4):
            Distance of the frames of a clip, in frames of a 30 Hz video (`frames_per_second` below).
        frames_per_second (`float`, *optional*, defaults to 30.0):
            Frame rate that `frame_stride` refers to. Videos with another rate are sampled by time.
        output_frames (`"keyframe"` or `"all"`, *optional*, defaults to `"keyframe"`):
            Detect in frame `num_frames // 2` only, or in every frame.
        problem_type (`str`, *optional*, defaults to `"multi_label_classification"`):
            With `"single_label_classification"` label smoothing spreads over the classes instead of towards 0.5.
        score_with_actor (`bool`, *optional*, defaults to `False`):
            Whether the score of a class, in the loss and in the results, is multiplied by the actor's confidence.
        num_queries (`int`, *optional*, defaults to 15):
            Actor candidates per frame.
        class_groups (`list[int]`, *optional*):
            Sizes of groups of classes that were added one after the other. The queries of a group see those of earlier
            groups but not of later ones, so that added classes leave the scores of the others as they are. They sum to
            the number of classes: to load a model for other classes, pass None as well.
        class_queries (`"learned"` or `"text"`, *optional*, defaults to `"learned"`):
            Where the query of a class comes from, and with `class_readout="per_class"` the vector that its score is
            read with: learned for each class, or projected from an embedding of words that describe it, so that a
            class that was never trained can be asked for.
        class_descriptions (`dict[str, list[str]]`, *optional*):
            With `"text"`, the sentences that describe each class; set by `set_classes` of the model.
        description_pooling (`"mean"` or `"attention"`, *optional*, defaults to `"mean"`):
            How the embeddings of several descriptions of a class become one: their mean, or with weights that are
            learned as a function of the embedding.
        class_residual (`bool`, *optional*, defaults to `False`):
            With `"text"`, whether each class has a learned vector beside what is read from its words. Classes that
            were never trained have none: what the others learn in it is not passed on to them.
        text_encoder, text_encoder_revision (`str`, *optional*):
            The model that encoded the descriptions, a folder or name on the Hub, and its commit.
        text_embedding_size (`int`, *optional*):
            With `"text"`, the width of its embeddings.
        untrained_classes (`list[str]`, *optional*):
            Classes that are known by their words only, because no training saw them.
        class_chunk (`int`, *optional*):
            At most so many classes attend at a time, which bounds the memory that class attention needs; all by
            default. Nothing else changes.
        d_model (`int`, *optional*, defaults to 256):
            Width of encoder and decoder; a multiple of 16 (32 with a CSN backbone) and of both numbers of heads.
        encoder_layers, decoder_layers (`int`, *optional*, defaults to 6):
            Number of layers.
        encoder_attention_heads, decoder_attention_heads (`int`, *optional*, defaults to 8):
            Number of attention heads.
        encoder_ffn_dim, decoder_ffn_dim (`int`, *optional*, defaults to 2048):
            Width of the feed-forward layers.
        dropout (`float`, *optional*, defaults to 0.1):
            Dropout of encoder and decoder.
        classifier_dropout (`float`, *optional*, defaults to 0.5):
            Dropout of the class features before the class readout.
        num_feature_levels (`int`, *optional*, defaults to 4):
            Levels of the feature pyramid, 2 to 4: the last is half the backbone's resolution, the one before it equals
            it, those before double it each time. The decoder works at the resolution of the last but one. A CSN
            backbone has 4.
        encoder_n_points (`int`, *optional*, defaults to 8):
            Points sampled per head and level in the deformable encoder.
        class_cost, bbox_cost, giou_cost (`float`, *optional*, defaults to 12, 5, 2):
            Weights of the actor confidence, the L1 distance and the generalized IoU in the matching.
        class_loss_coefficient, bbox_loss_coefficient, giou_loss_coefficient, actor_loss_coefficient (`float`,
            *optional*, defaults to 10, 5, 2, 1): Weights of the loss terms.
        eos_coefficient (`float`, *optional*, defaults to 0.1):
            Weight of the background class in the actor loss.
        positive_weight (`float`, *optional*, defaults to 10):
            Weight of a matched candidate in the class loss; the others weigh 1.
        focal_alpha, focal_gamma (`float`, *optional*, defaults to 0.25, 2):
            Parameters of the focal class loss.
        label_smoothing (`float`, *optional*, defaults to 0.1):
            Smoothing of the class targets.
        class_loss_normalization (`"none"`, `"frames"` or `"actors"`, *optional*, defaults to `"none"`):
            What the class loss, a sum over candidates, is divided by: nothing (published for AVA), the real frames of
            the batch (published for UCF101-24 and JHMDB-21) or its annotated actors.
        loss_counts (`"global"` or `"local"`, *optional*, defaults to `"global"`):
            Actors, frames and candidates that losses are divided by are counted over all clips of an update, on all
            processes and in all accumulated batches, or (released) in the batch at hand. It is the trainer that counts
            globally.
        auxiliary_loss (`bool`, *optional*, defaults to `True`):
            Whether every decoder layer is supervised, with the same weights.
        initial_boxes (`"random"` or `"grid"`, *optional*, defaults to `"random"`):
            Where the learned boxes of the candidates start in training from scratch: drawn at random (released), or
            with the size of somebody upright in the middle of the cells of a grid over the frame, as anchors of
            detectors are laid out.
        denoising_groups (`int`, *optional*, defaults to 0):
            Training only: how often the annotated boxes, each time with other noise, are given to the localizing
            layers beside the candidates, for the true boxes to be recovered from them without any matching (DN-DETR,
            arXiv 2203.01305). They see neither each other nor the candidates, nor are they seen or classified.
        denoising_noise (`float`, *optional*, defaults to 0.4):
            Largest noise, between 0 and 1: a box moves by up to that part of its size, and grows or shrinks by it.
        sampling_offset_order (`"released"` or `"geometric"`, *optional*, defaults to `"released"`):
            The released encoder divides the (x, y, t) offsets by (frames, width, height); `"geometric"` by (width,
            height, frames), so that an offset of one is one cell on each axis.
        sine_frequencies (`"released"`, `"paired"` or `"octaves"`, *optional*, defaults to `"released"`):
            In the released position encoding the sine and the cosine of a pair have different frequencies;
            `"paired"` gives them one. Both reach from one cycle over the frame down to a ten-thousandth, so that
            most channels hardly tell two places of a frame apart (DAB-DETR, arXiv 2201.12329, section 4.4).
            `"octaves"` spaces them from half a cycle to `highest_sine_frequency`, for cells and boxes, and puts
            cells where their centres are.
        highest_sine_frequency (`float`, *optional*, defaults to 4.0):
            Of `"octaves"`, in cycles over the frame; at most half of the cells along the frame tell them apart.
        resampling_grid (`"released"` or `"pixel_centers"`, *optional*, defaults to `"released"`):
            The released grid that brings all levels to one size halves the outermost cells and zooms slightly (and
            swaps x and y where the level already has all frames); `"pixel_centers"` keeps a constant map constant.
        resampled_position (`"released"` or `"nearest"`, *optional*, defaults to `"released"`):
            Frame f of the decoder gets the position encoding of time slot f modulo the slots (released) or of the slot
            that f falls into.
        class_attention_heads (`"released"` or `"interleaved"`, *optional*, defaults to `"released"`):
            In the released class attention one half of the heads, of which there is an even number, sees only content,
            the other half only positions; `"interleaved"` shows both to every head.
        class_convolutions (`"released"` or `"separate"`, *optional*, defaults to `"released"`):
            The three convolution blocks before the class attention share their weights, or have their own.
        class_readout (`"released"` or `"per_class"`, *optional*, defaults to `"released"`):
            A class logit is the channel mean of the class feature, or its product with a learned vector of that class
            plus a bias that starts at a low prior.
        padding (`"released"` or `"masked"`, *optional*, defaults to `"released"`):
            The release computes features of the padding of a batch, and they leak into those of the frame.
            `"masked"` computes each clip as if it were alone, one size after the other (under FSDP or with
            synchronised batch norm, use batches of one size), and hides the padding from encoder and decoder.
        weights_license (`str`, *optional*):
            Licence of the weights as the Hub calls it, where they were made from weights of others; it is noted at the
            conversion and stays with what is trained further.
        box_modulation (`"released"` or `"clamped"`, *optional*, defaults to `"released"`):
            Attention is widened by the inverse of a candidate's width and height: as it is, which overflows as they
            vanish, or of at least one percent of the frame.
    """

    model_type = "classquery"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=ClassQueryViTConfig)}
    attribute_map = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}

    backbone_config: Any = None
    if TYPE_CHECKING:
        # What they are once made, which transformers leaves open.
        id2label: dict[int, str] = {}
        label2id: dict[str, int] = {}
        num_labels: int = 80
    # Clip
    num_frames: int = 16
    frame_stride: int = 4
    frames_per_second: float | int = 30.0
    # Task
    output_frames: Literal["keyframe", "all"] = "keyframe"
    score_with_actor: bool = False
    num_queries: int = 15
    class_groups: list[int] | tuple[int, ...] | None = None
    class_chunk: int | None = None
    # Classes in words
    class_queries: Literal["learned", "text"] = "learned"
    class_descriptions: dict[str, list[str]] | None = None
    description_pooling: Literal["mean", "attention"] = "mean"
    class_residual: bool = False
    text_encoder: str | None = None
    text_encoder_revision: str | None = None
    text_embedding_size: int | None = None
    untrained_classes: list[str] | None = None
    # Encoder and decoder
    d_model: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    dropout: float | int = 0.1
    classifier_dropout: float | int = 0.5
    num_feature_levels: int = 4
    encoder_n_points: int = 8
    # Matcher
    class_cost: float | int = 12.0
    bbox_cost: float | int = 5.0
    giou_cost: float | int = 2.0
    # Loss
    class_loss_coefficient: float | int = 10.0
    bbox_loss_coefficient: float | int = 5.0
    giou_loss_coefficient: float | int = 2.0
    actor_loss_coefficient: float | int = 1.0
    eos_coefficient: float | int = 0.1
    positive_weight: float | int = 10.0
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    label_smoothing: float | int = 0.1
    class_loss_normalization: Literal["none", "frames", "actors"] = "none"
    loss_counts: Literal["global", "local"] = "global"
    auxiliary_loss: bool = True
    # Aids to learning
    initial_boxes: Literal["random", "grid"] = "random"
    denoising_groups: int = 0
    denoising_noise: float | int = 0.4
    # Origin of the weights
    weights_license: str | None = None
    # Oddities of the released checkpoints that the other value puts right
    sampling_offset_order: Literal["released", "geometric"] = "released"
    sine_frequencies: Literal["released", "paired", "octaves"] = "released"
    highest_sine_frequency: float | int = 4.0
    resampling_grid: Literal["released", "pixel_centers"] = "released"
    resampled_position: Literal["released", "nearest"] = "released"
    class_attention_heads: Literal["released", "interleaved"] = "released"
    class_convolutions: Literal["released", "separate"] = "released"
    class_readout: Literal["released", "per_class"] = "released"
    padding: Literal["released", "masked"] = "released"
    box_modulation: Literal["released", "clamped"] = "released"

    @classmethod
    def corrected(cls, **overrides) -> "ClassQueryConfig":
        """Make a configuration for training from scratch: the other value for every oddity of the release.

        Args:
            overrides: Values of this class, which go first. In a `backbone_config` given as a dict, the position
                table is put right unless it is named there; a configuration object stays as it is.
        """
        backbone = overrides.pop("backbone_config", None) or {"model_type": "classquery_vit"}
        if isinstance(backbone, dict) and backbone.get("model_type", "classquery_vit") == "classquery_vit":
            backbone = {"model_type": "classquery_vit", "position_table": "factorized"} | backbone
        return cls(**CORRECTED | overrides, backbone_config=backbone)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """Make a configuration of a dict, with other values over those in it."""
        # The base class would check the groups in the dict against another `num_labels` before it replaces them.
        if "class_groups" in kwargs:
            config_dict = config_dict | {"class_groups": kwargs.pop("class_groups")}
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        if not isinstance(self.backbone_config, PreTrainedConfig):
            self.backbone_config = _make_backbone_config(**(self.backbone_config or {}))
        if not _IS_REMOTE_CODE:
            # The pipeline of the package is registered; this would ask for trust in the copy in the folder.
            kwargs.pop("custom_pipelines", None)
        if self.problem_type is None:
            self.problem_type = "multi_label_classification"
        if self.id2label is None:
            # Before the base class makes a name for each of them.
            kwargs["num_labels"] = _checked_size("num_labels", kwargs.get("num_labels", 80))
        super().__post_init__(**kwargs)
        # In order, as it is gone through; and what is given for the reverse may be that of the classes before.
        self.id2label = dict(sorted(self.id2label.items()))
        self.label2id = {label: index for index, label in self.id2label.items()}
        if isinstance(self.class_descriptions, dict):
            # A file has them in alphabetical order, in which a model would get other classes.
            in_order = [label for label in self.id2label.values() if label in self.class_descriptions]
            self.class_descriptions = {label: self.class_descriptions[label] for label in in_order}

    def save_pretrained(self, *args, **kwargs):
        """Save the configuration and beside it the code of model, processor and pipeline; see `SavedWithCode`."""
        self.auto_map, self.custom_pipelines = dict(AUTO_MAP), PIPELINES
        super().save_pretrained(*args, **kwargs)

    def validate_architecture(self):
        """Check the ranges of the fields and the relations between them."""
        _check_sizes(self)
        self._check_names()
        self._check_ranges()
        self._check_heads()
        self._check_backbone()
        self._check_classes()

    def _check_heads(self) -> None:
        _require_multiple("d_model", self.d_model, 16, "position encodings split it 2:3:3")
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            _require_multiple("d_model", self.d_model, getattr(self, name), f"it is split into `{name}`")
        if self.class_attention_heads == "released":
            reason = (
                "one half of them sees content, the other positions; class_attention_heads='interleaved' takes any"
            )
            _require_multiple("decoder_attention_heads", self.decoder_attention_heads, 2, reason)

    def _check_backbone(self) -> None:
        _check_sizes(self.backbone_config)
        kind = self.backbone_config.model_type
        if kind not in BACKBONE_TYPES:
            raise ValueError(
                f"`backbone_config` must be of one of the types {', '.join(BACKBONE_TYPES)}, got {kind!r}"
            )
        if kind == ClassQueryCSNConfig.model_type:
            _require(self, "num_feature_levels", self.num_feature_levels == 4, "4 with a CSN backbone")
            _require_multiple("d_model", self.d_model, 32, "the projection of CSN features has 32 groups of channels")
        else:
            hidden_size = self.backbone_config.hidden_size
            _require_multiple("hidden_size", hidden_size, 4, "the feature pyramid halves it twice")
        tubelet_size = getattr(self.backbone_config, "tubelet_size", 1)
        _require_multiple("num_frames", self.num_frames, tubelet_size, "the backbone joins that many frames")
        _check_position_table(self.backbone_config, self.num_frames)

    def _check_names(self) -> None:
        names = list(self.id2label.values())
        if list(self.id2label) != list(range(len(names))):
            raise ValueError(f"`id2label` must name the classes 0 to {len(names) - 1}, got {_shown(self.id2label)}")
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise ValueError(f"classes must have different names, got `id2label` {_shown(self.id2label)}")

    def _check_classes(self) -> None:
        if self.class_groups is not None:
            _require(self, "class_groups", min(self.class_groups, default=0) >= 1, "one or more sizes of at least 1")
            expected = f"sizes that sum to the {self.num_labels} classes (pass class_groups=None for other classes)"
            _require(self, "class_groups", sum(self.class_groups) == self.num_labels, expected)
        if self.class_chunk is not None:
            _require(self, "class_chunk", self.class_chunk >= 1, "at least 1")
        if self.class_queries != "text":
            return
        width = self.text_embedding_size
        _require(
            self, "text_embedding_size", width is not None and width >= 1, "the width of the embeddings of the words"
        )
        described = self.class_descriptions
        if described is not None:
            without = [label for label in self.id2label.values() if not described.get(label)]
            if without:
                raise ValueError(
                    f"`class_descriptions` must describe each class, and has no words for {str(without[:5])[:200]}"
                )

    def _check_ranges(self) -> None:
        for name in _AT_LEAST_ONE:
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in _NOT_NEGATIVE:
            _require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("dropout", "classifier_dropout", "focal_alpha", "denoising_noise"):
            _require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        _require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and less than 1")
        _require(self, "frames_per_second", 0 < self.frames_per_second < math.inf, "more than 0")
        _require(self, "highest_sine_frequency", 0.5 < self.highest_sine_frequency < math.inf, "more than 0.5")
        _require(self, "num_feature_levels", 2 <= self.num_feature_levels <= 4, "2, 3 or 4")
        problem_types = ("multi_label_classification", "single_label_classification")
        _require(self, "problem_type", self.problem_type in problem_types, " or ".join(problem_types))

    @property
    def keyframe_index(self) -> int:
        """Index in the clip of the frame that key-frame models detect in."""
        return self.num_frames // 2

    @property
    def num_output_frames(self) -> int:
        """Number of frames of a clip that the model detects in."""
        return len(self.output_frame_indices(self.num_frames))

    @property
    def num_descriptions(self) -> int:
        """Largest number of descriptions of a class."""
        return max((len(sentences) for sentences in (self.class_descriptions or {}).values()), default=1)

    def output_frame_indices(self, num_frames: int) -> list[int]:
        """Frames that the model detects in, of a clip of so many frames."""
        return list(range(num_frames))[self.output_frame_slice(num_frames)]

    def output_frame_slice(self, num_frames: int) -> slice:
        """The same frames as a slice."""
        keyframe = num_frames // 2
        return slice(keyframe, keyframe + 1) if self.output_frames == "keyframe" else slice(None)


def _shown(value: Any) -> str:
    return str(value)[:100]


def _require(config: PreTrainedConfig, name: str, is_met: bool, expected: str) -> None:
    if not is_met:
        raise ValueError(f"`{name}` must be {expected}, got {getattr(config, name)!r}")


def _check_sizes(config: PreTrainedConfig) -> None:
    """Refuse sizes and numbers of layers that no model has, before anything is made of them."""
    for name, value in vars(config).items():
        limit = MAX_LAYERS if "layers" in name or name == "depths" else MAX_SIZE
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(item, int) and abs(item) > limit for item in values):
            raise ValueError(f"`{name}` must be at most {limit}, got {_shown(value)}")


def _check_position_table(backbone: PreTrainedConfig, num_frames: int) -> None:
    grid = getattr(backbone, "position_grid", None)
    if grid is None and hasattr(backbone, "image_size"):
        sides = (backbone.image_size, backbone.patch_size)
        image, patch = (side if isinstance(side, (list, tuple)) else (side, side) for side in sides)
        grid = [image_side // patch_side for image_side, patch_side in zip(image, patch, strict=True)]
        num_frames = backbone.num_frames
    num_values = math.prod(grid or ()) * num_frames * getattr(backbone, "hidden_size", 0)
    if num_values > MAX_POSITION_VALUES:
        raise ValueError(
            f"`backbone_config` asks for positions of {num_frames} frames in a grid {tuple(grid or ())}, beyond any "
            "memory"
        )


def _checked_size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SIZE:
        raise ValueError(f"`{name}` must be a whole number from 0 to {MAX_SIZE}, got {_shown(value)}")
    return value


def _require_multiple(name: str, value: int, divisor: int, reason: str) -> None:
    if value % divisor:
        raise ValueError(f"`{name}` must be a multiple of {divisor} ({reason}), got {value}")


def _make_backbone_config(model_type: str = ClassQueryViTConfig.model_type, **values: Any) -> PreTrainedConfig:
    """Resolve our own types without transformers' registry, where only the installed package registers them."""
    own = {config.model_type: config for config in (ClassQueryViTConfig, ClassQueryCSNConfig)}
    return own[model_type].from_dict(values) if model_type in own else AutoConfig.for_model(model_type, **values)


__all__ = ["ClassQueryCSNConfig", "ClassQueryConfig", "ClassQueryViTConfig"]
