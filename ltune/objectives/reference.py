"""Temporary."""

from ltune.data.collate import Batch


class Reference:
    def extend(self, model, load): ...

    def token_losses(self, policy, batch: Batch, temperature=1.0): ...


class AdapterOff(Reference):
    def token_losses(self, policy, batch, temperature=1.0):
        with policy.without_adapter():
            return policy.token_losses(batch, temperature)
