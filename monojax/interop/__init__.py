"""Other tools' SAE files, in and out: `read` makes a `monojax.SAE` of any of them, `write` the files of any of them.

  sae = monojax.interop.read("hf:owner/name/folder")
  monojax.interop.write(sae, "exported", "sae_lens", model_name="gpt2")

A room of its own because each format is a small translation between a tool's names and monojax's, and none of what is
trained, analysed or shown depends on any of them.
"""

from monojax.interop.card import push
from monojax.interop.convert import FORMATS, WRITTEN, read, write
from monojax.interop.neuronpedia import export

__all__ = ["FORMATS", "WRITTEN", "export", "push", "read", "write"]
