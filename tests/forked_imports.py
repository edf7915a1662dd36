"""What the processes of `forked` have imported when they start. The imports use no autograd."""

import tiny  # noqa: F401
import torch._inductor
import torch.utils.tensorboard  # noqa: F401

import slimdeploy.toolchain.commands.finetune
import slimdeploy.toolchain.commands.train
import slimdeploy.toolchain.data.sources
import slimdeploy.toolchain.stages.train  # noqa: F401
