"""What training gathers is what the senses said, however large a codebook is."""

from types import SimpleNamespace

import torch

from pan_hf.training.windows import encode_all


class LargeCodec(torch.nn.Module):
    def encode(self, values):
        return [values.long()], None


def test_a_code_beyond_16_bits_is_kept():
    codes = torch.tensor([[0, 32_767, 32_768, 70_000]])
    config = SimpleNamespace(place_senses={"s": SimpleNamespace(num_levels=1)}, prefix_senses={}, text_senses={})
    model = torch.nn.Module()
    model.senses, model.config, model.device = {"s": LargeCodec()}, config, torch.device("cpu")
    assert torch.equal(encode_all(model, {"s": codes}, latents=False)["codes"]["s"][0].long(), codes)
