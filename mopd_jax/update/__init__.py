"""The training update: objectives, teachers and the jitted step."""
