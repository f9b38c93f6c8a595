"""A fleet of replicas behind a router, simulated event by event. Needs no PyTorch. Introduced in chapter 13."""
