"""A server that answers with the champion, its traffic log and the scoring of many pictures."""
