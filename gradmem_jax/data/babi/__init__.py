"""bAbI: the task, varied copies of its stories, more questions about them."""
