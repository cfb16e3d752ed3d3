"""What is logged on its way to those who take it: kept while they do not, sent again, never lost."""
