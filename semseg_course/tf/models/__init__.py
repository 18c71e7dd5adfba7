"Networks in Keras 3, one module a paper."
