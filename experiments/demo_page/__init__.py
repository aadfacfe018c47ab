"""The page of experiments.demo: what it computes, how that is drawn, and the page itself."""
