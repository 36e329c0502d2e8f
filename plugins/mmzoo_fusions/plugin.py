"""Register the fusions: how features meet language, in the three places of the literature, early, deep and late."""

from __future__ import annotations

from typing import Any

from mmzoo.api import Entry, hookimpl

_CLIPCAP = "ClipCap, Mokady et al. 2021, https://arxiv.org/abs/2111.09734"
_FLAMINGO = "Flamingo, Alayrac et al. 2022, https://arxiv.org/abs/2204.14198"


def _entry(name: str, target: str, source: str, summary: str, **tiny: Any) -> Entry:
    """Return the entry of a fusion; ``tiny`` has the options that make it small."""
    return Entry("fusion", name, f"mmzoo_fusions.{target}", summary, license="Apache-2.0", source=source, tiny=tiny)


# fmt: off
_FUSIONS = (
    _entry("prefix-linear", "prefix:LinearPrefix", "Frozen, Tsimpoukelli et al. 2021, https://arxiv.org/abs/2106.13884",
           "pooled features as a few prefix tokens, through one linear layer (Frozen)", length=2),
    _entry("prefix-mlp", "prefix:MLPPrefix", _CLIPCAP,
           "pooled features as prefix tokens, through an MLP (ClipCap)", length=3),
    _entry("prefix-transformer", "prefix:TransformerPrefix", _CLIPCAP,
           "pooled features as prefix tokens, through a transformer with learned constants (ClipCap)",
           length=3, clip_length=2, layers=1, heads=2),
    _entry("projector", "projector:Projector", "LLaVA-1.5, Liu et al. 2023, https://arxiv.org/abs/2310.03744",
           "every visual token as an input token, through a linear layer or an MLP (LLaVA), with pixel shuffle (nanoVLM)"),
    _entry("resampler", "resampler:Resampler", _FLAMINGO,
           "visual tokens to a few input tokens, through latents that attend to them (Flamingo's perceiver resampler)",
           latents=3, layers=1, heads=2, head_dim=8),
    _entry("q-former", "qformer:QFormer", "BLIP-2, Li et al. 2023, https://arxiv.org/abs/2301.12597",
           "visual tokens to a few input tokens, through queries of a BERT-like transformer (BLIP-2)",
           queries=3, dim=16, layers=2, heads=2),
    _entry("encoder-states", "memory:EncoderStates", "Show, Attend and Tell, Xu et al. 2015, https://arxiv.org/abs/1502.03044",
           "visual tokens as states of the encoder, for the decoder to read"),
    _entry("concat", "concat:SingleStream", "VisualBERT, Li et al. 2019, https://arxiv.org/abs/1908.03557",
           "visual and text tokens in one sequence with type embeddings (VisualBERT)"),
    _entry("late-concat", "late:LateConcat",
           "Show and Tell's merge variant, Tanti et al. 2018, https://arxiv.org/abs/1708.02043",
           "pooled features beside each text state, c = [v, l], through an MLP"),
    _entry("late-sum", "late:LateSum", "Baltrusaitis et al. 2019, https://arxiv.org/abs/1705.09406",
           "projected features plus projected text states, Z = f_v + f_t"),
    _entry("late-product", "late:LateProduct", "VQA, Antol et al. 2015, https://arxiv.org/abs/1505.00468",
           "projected features times projected text states, element by element"),
    _entry("late-attention", "late:LateAttention", "Stacked attention, Yang et al. 2016, https://arxiv.org/abs/1511.02274",
           "text states attend to visual tokens after the language model", heads=2),
    _entry("cross-attention", "cross:GatedCrossAttention", _FLAMINGO,
           "gated cross-attention before every nth block of the language model (Flamingo)", heads=2, every=1),
    _entry("co-attention", "coattention:CoAttention", "LXMERT, Tan and Bansal 2019, https://arxiv.org/abs/1908.07490",
           "a vision stream beside the text's, and attention between them before every nth block (ViLBERT, LXMERT)",
           heads=2, mlp_ratio=2),
    _entry("tensor-fusion", "tensor:TensorFusion", "Tensor Fusion Network, Zadeh et al. 2017, https://arxiv.org/abs/1707.07250",
           "outer product of the text state and the features of all encoders, through a linear layer (TFN)", width=4),
    _entry("low-rank-fusion", "tensor:LowRankFusion", "LMF, Liu et al. 2018, https://arxiv.org/abs/1806.00064",
           "tensor fusion with weights of a low rank: sums of products of text state and features (LMF)", rank=2),
    _entry("gated", "gated:GatedFusion", "GMU, Arevalo et al. 2017, https://arxiv.org/abs/1702.01992",
           "text state and features of all encoders, weighed by gates that see all of them (GMU)"),
    _entry("bilinear", "bilinear:BilinearFusion",
           "MFB, Yu et al. 2017, https://arxiv.org/abs/1708.01471, and MUTAN, Ben-younes et al. 2017, https://arxiv.org/abs/1705.06676",
           "factorised bilinear pooling of text state and features of all encoders (MFB, MUTAN)", width=8, rank=2),
    _entry("cross-modal", "crossmodal:CrossModal", "MulT, Tsai et al. 2019, https://arxiv.org/abs/1906.00295",
           "attention between every two of text and encoders, then within each, added to the text's embeddings (MulT)",
           width=8, heads=2, layers=1),
    _entry("graph", "graph:GraphAttention", "GAT, Velickovic et al. 2018, https://arxiv.org/abs/1710.10903",
           "attention over a graph of the tokens of all encoders and of the text, added to the text's embeddings (GAT)",
           width=8, heads=2, layers=1),
    _entry("convolution", "convolution:Convolution", "ConvS2S, Gehring et al. 2017, https://arxiv.org/abs/1705.03122",
           "convolutions over the tokens of all encoders and the text after them (ConvS2S)", layers=1),
    _entry("none", "nothing:NoFusion",
           "the first stage of Frozen, Tsimpoukelli et al. 2021, https://arxiv.org/abs/2106.13884",
           "adds nothing, for a language model on text alone (with encoder 'none')"),
)
# fmt: on


@hookimpl
def mmzoo_fusions() -> list[Entry]:
    return list(_FUSIONS)
