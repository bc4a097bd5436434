"""Other tools' names of places in a transformer, and monojax's sites: one table, read in both directions.

TransformerLens (and with it SAELens, Neuronpedia and circuit-tracer) names hooks, `blocks.3.hook_mlp_out`; sparsify
names modules whose output is meant, `layers.3.mlp`; Gemma Scope 2 names modules with the side that is meant,
`model.layers.3.output`. A name that is not in the table is kept as it is, so that nothing is lost.
"""

import re

# (site, TransformerLens' hooks of it, the first of which is written). {} is the number of the layer.
_HOOKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("layer.{}.resid", ("blocks.{}.hook_resid_post",)),
    ("layer.{}.mid", ("blocks.{}.hook_resid_mid",)),
    ("layer.{}.mlp.in", ("blocks.{}.mlp.hook_in",)),
    ("layer.{}.mlp.hidden", ("blocks.{}.mlp.hook_post",)),
    ("layer.{}.mlp.out", ("blocks.{}.hook_mlp_out", "blocks.{}.mlp.hook_out")),
    ("layer.{}.attn.z", ("blocks.{}.attn.hook_z",)),
    ("layer.{}.attn.out", ("blocks.{}.hook_attn_out",)),
)
# (site, names of Hugging Face modules behind a layer's own, whether what goes in is meant). A layer's own name may have
# any of several prefixes, such as model.layers.3 or transformer.h.3.
_MODULES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("layer.{}.resid", ("",), False),
    ("layer.{}.mlp.out", ("mlp", "post_feedforward_layernorm"), False),
    ("layer.{}.mlp.in", ("mlp",), True),
    ("layer.{}.mlp.in", ("pre_feedforward_layernorm",), False),
    ("layer.{}.mlp.hidden", ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h"), True),
    ("layer.{}.attn.out", ("attn", "self_attn", "attention"), False),
    ("layer.{}.attn.z", ("self_attn.o_proj", "attn.c_proj", "attention.dense"), True),
)
_LAYER = re.compile(r"(?:(?:model|transformer|gpt_neox|model\.language_model|language_model\.model)\.)?"
                    r"(?:layers|h)\.(\d+)(?:\.(.+?))??(?:\.(input|output))?")


def site_of(name: str | None) -> str:
  """The site of a hook's or a module's name; a name that is not known stays as it is, and "" stands for none.

  The residual stream before a block is the site of the block before it, and `embed` before the first.
  """
  if not name:
    return ""
  if before := re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", name):
    return f"layer.{int(before[1]) - 1}.resid" if int(before[1]) else "embed"
  for site, hooks in _HOOKS:
    for hook in hooks:
      if found := re.fullmatch(re.escape(hook).replace(r"\{\}", r"(\d+)"), name):
        return site.format(int(found[1]))
  if found := _LAYER.fullmatch(name):
    for site, modules, goes_in in _MODULES:
      if (found[2] or "") in modules and goes_in == (found[3] == "input"):
        return site.format(int(found[1]))
  return name


def names_output(name: str) -> bool:
  """Whether a name is of an attention's or MLP's module, so that what the module gives is meant, before any norm."""
  found = _LAYER.fullmatch(name)
  return bool(found and found[2] in ("mlp", "attn", "self_attn", "attention") and found[3] != "input")


def hook_of(site: str) -> str:
  """TransformerLens' name of a site; a name that is no site in the table stays as it is."""
  if site == "embed":
    return "blocks.0.hook_resid_pre"
  for known, hooks in _HOOKS:
    if found := re.fullmatch(re.escape(known).replace(r"\{\}", r"(\d+)"), site):
      return hooks[0].format(found[1])
  return site


def layer_of(site: str) -> int | None:
  """The number of a site's layer; None where it has none."""
  found = re.search(r"\blayer\.(\d+)\.|\bblocks\.(\d+)\.", site)
  return int(found[1] or found[2]) if found else None
