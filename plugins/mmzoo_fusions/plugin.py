"""How features meet language, in the three places of the literature: early, deep and late."""

from mmzoo.api import Entry, hookimpl

_CLIPCAP = "ClipCap, Mokady et al. 2021, https://arxiv.org/abs/2111.09734"
_FLAMINGO = "Flamingo, Alayrac et al. 2022, https://arxiv.org/abs/2204.14198"


def _entry(name, target, summary, source, **tiny):
    return Entry(
        "fusion", name, target=f"mmzoo_fusions.{target}", summary=summary, license="Apache-2.0", source=source, tiny=tiny
    )


@hookimpl
def mmzoo_fusions():
    return [
        _entry(
            "prefix-linear",
            "prefix:LinearPrefix",
            "pooled features as a few prefix tokens, through one linear layer (Frozen)",
            "Frozen, Tsimpoukelli et al. 2021, https://arxiv.org/abs/2106.13884",
            length=2,
        ),
        _entry(
            "prefix-mlp",
            "prefix:MLPPrefix",
            "pooled features as prefix tokens, through an MLP (ClipCap)",
            _CLIPCAP,
            length=3,
        ),
        _entry(
            "prefix-transformer",
            "prefix:TransformerPrefix",
            "pooled features as prefix tokens, through a transformer with learned constants (ClipCap)",
            _CLIPCAP,
            length=3,
            clip_length=2,
            layers=1,
            heads=2,
        ),
        _entry(
            "projector",
            "projector:Projector",
            "every visual token as an input token, through a linear layer or an MLP (LLaVA), with pixel shuffle (nanoVLM)",
            "LLaVA-1.5, Liu et al. 2023, https://arxiv.org/abs/2310.03744",
        ),
        _entry(
            "resampler",
            "resampler:Resampler",
            "visual tokens to a few input tokens, through latents that attend to them (Flamingo's perceiver resampler)",
            _FLAMINGO,
            latents=3,
            layers=1,
            heads=2,
            head_dim=8,
        ),
        _entry(
            "q-former",
            "qformer:QFormer",
            "visual tokens to a few input tokens, through queries of a BERT-like transformer (BLIP-2)",
            "BLIP-2, Li et al. 2023, https://arxiv.org/abs/2301.12597",
            queries=3,
            dim=16,
            layers=2,
            heads=2,
        ),
        _entry(
            "encoder-states",
            "memory:EncoderStates",
            "visual tokens as states of the encoder, for the decoder to read",
            "Show, Attend and Tell, Xu et al. 2015, https://arxiv.org/abs/1502.03044",
        ),
        _entry(
            "concat",
            "concat:SingleStream",
            "visual and text tokens in one sequence with type embeddings (VisualBERT)",
            "VisualBERT, Li et al. 2019, https://arxiv.org/abs/1908.03557",
        ),
        _entry(
            "late-concat",
            "late:LateConcat",
            "pooled features beside each text state, c = [v, l], through an MLP",
            "Show and Tell's merge variant, Tanti et al. 2018, https://arxiv.org/abs/1708.02043",
        ),
        _entry(
            "late-sum",
            "late:LateSum",
            "projected features plus projected text states, Z = f_v + f_t",
            "Baltrusaitis et al. 2019, https://arxiv.org/abs/1705.09406",
        ),
        _entry(
            "late-product",
            "late:LateProduct",
            "projected features times projected text states, element by element",
            "VQA, Antol et al. 2015, https://arxiv.org/abs/1505.00468",
        ),
        _entry(
            "late-attention",
            "late:LateAttention",
            "text states attend to visual tokens after the language model",
            "Stacked attention, Yang et al. 2016, https://arxiv.org/abs/1511.02274",
            heads=2,
        ),
        _entry(
            "cross-attention",
            "cross:GatedCrossAttention",
            "gated cross-attention before every nth block of the language model (Flamingo)",
            _FLAMINGO,
            heads=2,
            every=1,
        ),
        _entry(
            "co-attention",
            "coattention:CoAttention",
            "a vision stream beside the text's, and attention between them before every nth block (ViLBERT, LXMERT)",
            "LXMERT, Tan and Bansal 2019, https://arxiv.org/abs/1908.07490",
            heads=2,
            mlp_ratio=2,
        ),
        _entry(
            "none",
            "nothing:Nothing",
            "adds nothing, for a language model on text alone (with encoder 'none')",
            "the first stage of Frozen, Tsimpoukelli et al. 2021, https://arxiv.org/abs/2106.13884",
        ),
    ]
