"""Training on another machine: scripts and manifests that call `accelerate launch`.

`render` makes them of what is to be trained (`Training`) and of where (`settings`); `command` is
`trajlake launch`. The same few lines run on every node, whatever started it (`node.sh.jinja`).
"""

from orchestration.launch.render import Training, kubernetes, slurm, ssh
from orchestration.launch.settings import Places, read_places

__all__ = ["Places", "Training", "kubernetes", "read_places", "slurm", "ssh"]
