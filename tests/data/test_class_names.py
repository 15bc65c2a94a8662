from tnt_jax.data import class_names


def test_imagenets_names_are_in_the_order_of_its_labels():
    names, numbers = class_names.imagenet_names(), class_names.imagenet_numbers()
    assert len(set(names)) == len(set(numbers)) == 1000
    assert list(numbers) == sorted(numbers)  # as every framework numbers them
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    assert numbers[207] == "n02099601"


def test_two_classes_never_share_a_name():
    assert {"crane (bird)", "crane (machine)"} <= set(class_names.imagenet_names())


def test_wordnet_numbers_alone_are_replaced():
    assert class_names.readable(["n02099601", "cat", "n99999999"]) == ("golden retriever", "cat", "n99999999")
    assert class_names.readable(["no2099601", "n1"]) == ("no2099601", "n1")
