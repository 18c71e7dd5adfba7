"The networks, one paper a module."
