"""Several replicas of the server behind one address: `python -m lib.serving.fleet` on Ray Serve. Introduced in chapter 13."""
