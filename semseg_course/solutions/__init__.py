"The solutions of the exercises, one chapter a module."
