"""What receivers read of a circuit's senders: a sum written out, for sparse, dense and mixed rows, in 16 bits, too."""

import numpy as np
import pytest
import torch

from circuitdisc.engine.written import Written


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sums_are_those_of_the_kept_senders(share, dtype):
    generator = torch.Generator().manual_seed(0)
    rng, n_senders, shape = np.random.default_rng(0), 60, (2, 3, 4)
    live = np.flatnonzero(rng.random(n_senders) < 0.8)
    written = Written(live, torch.zeros(shape, dtype=dtype))
    values = {int(sender): torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for sender in live}
    done: list[int] = []
    for n_upstream in (0, 7, 20, 20, 41, n_senders):
        for sender in (sender for sender in values if sender < n_upstream and sender not in done):
            written.write(sender, values[sender], torch.zeros(1, 1, 4, dtype=dtype))
            done.append(sender)
        kept = rng.random((5, n_senders)) < share
        kept[:, [sender for sender in range(n_senders) if sender not in values]] = False
        kept[0], kept[1] = False, [sender in values for sender in range(n_senders)]  # nothing, and all, whatever the share
        sums = written.sums(kept, n_upstream)
        for row, read in zip(kept, sums, strict=True):
            chosen = [values[sender].double() for sender in done if row[sender]]
            truth = torch.stack(chosen).sum(0) if chosen else torch.zeros(shape, dtype=torch.float64)
            # a 16-bit result is rounded once, after what is cut has been, once
            allowed = 1e-12 if dtype == torch.float64 else 2**-8 * (truth.abs() + 8)
            assert ((read.double() - truth).abs() <= allowed).all()
