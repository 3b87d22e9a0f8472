"""Recurrent encoder-decoders, without attention (Sutskever et al. 2014) and with the attentions
of Bahdanau et al. 2015 and Luong et al. 2015."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_attention.checks import check_integers, wrong_value
from fused_attention.models.pretrained import PretrainedModel
from fused_attention.models.seq2seq_config import Seq2SeqConfig
from fused_attention.models.seq2seq_decoder import Decoded, Decoder
from fused_attention.models.seq2seq_encoder import Encoded, Encoder, check_ids, check_lengths
from fused_attention.models.seq2seq_init import reset_bahdanau, reset_uniform
from fused_attention.nn.sequences import pack, unpack


class Seq2Seq(PretrainedModel):
    """A recurrent encoder-decoder; its configuration says which of the three.

    Its checkpoints use our own names: transformers has no such models.
    """

    config_class = Seq2SeqConfig
    config: Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.source = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.target = self.source
        if config.target_vocab_size is not None:
            self.target = nn.Embedding(config.target_vocab_size, config.embedding_dim)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        width, self.deep_output = self.decoder.feature_dim, None
        if config.maxout:
            self.deep_output = nn.Linear(width, 2 * config.maxout)
            width = config.maxout
        self.head = nn.Linear(width, config.logits_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial values that the configuration asks for."""
        if self.config.init == "uniform":
            reset_uniform(self, self.config.init_range)
        elif self.config.init == "bahdanau":
            reset_bahdanau(self)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token after each of the target's.

        Args:
            source: integer [batch, source length].
            target: integer [batch, target length], beginning with the start token.
            source_lengths: integer [batch], the tokens of each padded row, at least 1; default all.
            target_lengths: the same of the target.

        Returns:
            [batch, target length, target's vocab_size], zeros for padding.

        Raises:
            TypeError, ValueError: an argument has a wrong type, shape or value.
        """
        features = self.decode(self.encode(source, source_lengths), target, target_lengths).features
        if target_lengths is None:
            return self.logits(features)
        packed = self.logits(pack(features, target_lengths))
        return unpack(packed, target_lengths, target.shape[1])

    def loss(
        self,
        source: Tensor,
        target: Tensor,
        source_lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the target's tokens after the first; smoothed in training.

        Args:
            target: integer [batch, length], from the start token to the end token.

        The other arguments are those of `forward`.
        """
        check_ids("target", target)
        labels, shorter = target[:, 1:], None
        if target_lengths is not None:
            check_lengths("target_lengths", target_lengths, target)
            shorter = target_lengths - 1
        encoded = self.encode(source, source_lengths)
        features = self.decode(encoded, target[:, :-1], shorter).features
        if shorter is not None:
            features, labels = pack(features, shorter), pack(labels, shorter)
        logits = self.logits(features).flatten(0, -2).float()
        smoothing = self.config.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits, labels.flatten().long(), label_smoothing=smoothing)

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Encoded:
        """The encoder's states of the sources, and its final ones."""
        encoded: Encoded = self.encoder(source, source_lengths, self.source)
        return encoded

    def decode(
        self, encoded: Encoded, target: Tensor, target_lengths: Tensor | None = None
    ) -> Decoded:
        """The decoder's steps over a whole target, each given the token before (teacher forcing).

        Args:
            encoded: from `encode`.
            target: integer [batch, length], beginning with the start token.
            target_lengths: integer [batch], default all.
        """
        check_ids("target", target)
        if len(target) != len(encoded.states):
            rule = f"must have source's batch {len(encoded.states)}"
            wrong_value("target", rule, len(target))
        if target_lengths is not None:
            check_integers("target_lengths", target_lengths, target.device, len(target))
            # Padding may be any number, also one that is no token.
            places = torch.arange(target.shape[1], device=target.device)
            target = target.masked_fill(places >= target_lengths[:, None], self.config.pad_token)
        decoded: Decoded = self.decoder(
            self.embed_target(target), self.decoder.start(encoded), self.decoder.remember(encoded)
        )
        return decoded

    def embed_target(self, ids: Tensor) -> Tensor:
        """Embeddings [..., embedding_dim] of target tokens [...]."""
        return F.dropout(self.target(ids), self.config.dropout, self.training)

    def logits(self, features: Tensor) -> Tensor:
        """[..., feature_dim] to [..., target's vocab_size].

        The deep output (Pascanu et al. 2014; Bahdanau et al. 2015, appendix A.2.2) keeps the larger
        one of each two of its linear units, maxout (Goodfellow et al. 2013). It takes the state
        after the step, as the paper's equation 4 does; the appendix writes the one before.
        """
        if self.deep_output is not None:
            features = self.deep_output(features).unflatten(-1, (-1, 2)).amax(-1)
        features = F.dropout(features, self.config.dropout, self.training)
        logits: Tensor = self.head(features)
        return logits
