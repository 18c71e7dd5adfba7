"The TensorFlow twins of the chapters: the same names, in Keras 3, NHWC."
