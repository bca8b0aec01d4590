import paddle

from paddlescience_gradnorm.training._closed_over import layers_of

at_the_top = paddle.nn.Identity()


class WithLosses(paddle.nn.Layer):
    def losses(self, net):
        return [net]


def test_a_function_has_the_layers_of_its_module_and_of_where_it_was_made():
    inside, number = paddle.nn.Identity(), 3

    def losses(net):
        return [inside(at_the_top(net)), number]

    assert layers_of(losses) == {"at_the_top": at_the_top, "inside": inside}


def test_names_within_a_comprehension_count_and_names_without_a_value_do_not():
    def losses(net):
        return [at_the_top(x) for x in [net]] + [later(net)]

    assert layers_of(losses) == {"at_the_top": at_the_top}
    later = paddle.nn.Identity()
    assert layers_of(losses) == {"at_the_top": at_the_top, "later": later}


def test_a_method_has_its_layer_and_so_has_a_layer():
    layer = WithLosses()
    assert layers_of(layer.losses) == layers_of(layer) == {"": layer}
    assert layers_of(print) == layers_of(len) == {}


def test_where_both_have_a_name_the_function_sees_the_inner_one():
    at_the_top = paddle.nn.Identity()

    def losses(net):
        return [at_the_top(net)]

    assert layers_of(losses) == {"at_the_top": at_the_top}
