"""Which weights of our networks go over the mesh axis `tensor` (kinds: see base/shard.py).

Layers come in pairs, as in Megatron-LM (Shoeybi et al. 2019, sec. 3): the first makes channels, the
second reads the same channels and sums over the devices, so that a pair costs one all-reduce. What
lies between acts on each channel, group or head alone. Where the axis divides the number of heads,
or of a norm's groups, each of them stays on one device; otherwise they are gathered.
"""

RULES = (
    # ResBlock's, and the discriminator's from its second on
    (r"(^|/)conv_[13579]/kernel$", "columns"),
    (r"(^|/)conv_[2468]/kernel$", "rows"),
    (r"/time/kernel$", "columns"),
    # CrossAttention and the MLPs
    (r"attn/[qkv]/kernel$", "columns"),
    (r"/mlp_in/kernel$", "columns"),
    (r"(attn|mlp)/out/kernel$", "rows"),
    (r"/mlp_out/kernel$", "rows"),
    # AttentionBlock; its qkv and GatedMLP's proj hold several maps side by side
    (r"/qkv/kernel$", "stored"),
    (r"(^|_|/)ada/kernel$", "stored"),
    (r"/mlp/proj/kernel$", "stored"),
    (r"attn(_\d+)?/proj/kernel$", "rows"),
)
