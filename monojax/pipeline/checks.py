"""What a command looks at before it does anything: whether its last stage could be done, too."""

from collections.abc import Iterable

from monojax import metrics
from monojax.pipeline.config import RunConfig
from monojax.pipeline.folder import RunFolder

_UNTRAINED = ("tokens", "activations", "analysis", "browser")  # stages that train nothing and log no metrics
_ON_ONE_DEVICE = ("tokens", "analysis", "browser")  # stages that take no mesh


def look_ahead(run: RunFolder, config: RunConfig, stages: Iterable[str]) -> None:
  """Checks what the stages of a command need besides each other; of finished stages nothing.

  Args:
    run: the run's folder.
    config: its settings.
    stages: the stages that the command does.

  Raises:
    InputError: a package that a setting needs is not installed, the place of the activations cannot be used, or a
      batch does not divide over the devices.
  """
  todo = {stage for stage in stages if not run.stage(stage)}
  if todo.difference(_UNTRAINED):
    metrics.require_packages(config.metrics)
  if "activations" in todo and config.activations.url:
    from monojax.activations.folder import Folder
    Folder(config.activations.url).reach(to_write=config.activations.source == "store")
  if todo.difference(_ON_ONE_DEVICE):
    _require_batches_divide(config, todo)


def _require_batches_divide(config: RunConfig, todo: set[str]) -> None:
  from monojax import mesh as meshes
  mesh = meshes.make_mesh(config.mesh)
  if "subject" in todo:
    meshes.require_divides(mesh, "data", config.subject.batch_contexts, "subject.batch_contexts")
  if "activations" in todo and config.activations.source == "store":
    from monojax.activations.harvest import mesh_of
    mesh_of(config.activations, mesh)
  if todo.difference((*_ON_ONE_DEVICE, "subject", "activations")):
    meshes.require_divides(mesh, "data", config.sae.batch_rows, "sae.batch_rows")
