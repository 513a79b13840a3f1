"""The five stages of a search - prepare, screen, try, finish, conclude - and the events they announce."""
