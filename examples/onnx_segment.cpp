// Labels a photo with an exported model, by ONNX Runtime's C++ API. Besides the photo it needs one file:
//
//     fgaseg export MODEL --to onnx --parts whole --names names.txt --out exported
//     g++ -std=c++17 -O2 onnx_segment.cpp -o onnx_segment -I "$ORT/include" -I "$STB" -L "$ORT/lib" -lonnxruntime
//     LD_LIBRARY_PATH="$ORT/lib" ./onnx_segment exported/whole.onnx photo.jpg labels.pgm
//
// ORT is the unpacked release archive of ONNX Runtime for C++, STB the folder of stb_image.h (Debian and Ubuntu:
// `apt install libstb-dev`, /usr/include/stb). labels.pgm has the index of a class for every pixel, in 16 bits. Labels
// are those of `FGASeg.segment` with inference=whole. Not done here: the orientation in EXIF is not applied,
// transparency is dropped, and a photo more than four times as long as broad is seen whole, not in tiles.

#define STB_IMAGE_IMPLEMENTATION
#include <onnxruntime_cxx_api.h>
#include <stb_image.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Size {
    int height, width;
    size_t area() const { return size_t(height) * size_t(width); }
};

// A value that the export wrote into the graph.
std::string metadata(const Ort::Session& session, const std::string& key) {
    Ort::AllocatorWithDefaultOptions allocator;
    auto value = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key.c_str(), allocator);
    if (!value) throw std::runtime_error("the graph has no " + key + ": export it with --parts whole --classes");
    return value.get();
}

// Short side as the model was trained, aspect kept, whole patches; halves are rounded to even, as in Python.
Size input_size(const Ort::Session& session, Size photo) {
    double side = std::stod(metadata(session, "fgaseg.short_side"));
    double longest = std::stod(metadata(session, "fgaseg.longest_aspect")) * side;
    double patch = std::stod(metadata(session, "fgaseg.patch"));
    double scale = std::min(side / std::min(photo.height, photo.width), longest / std::max(photo.height, photo.width));
    auto whole = [&](int n) { return int(std::max(std::nearbyint(n * scale / patch), 1.0) * patch); };
    return {whole(photo.height), whole(photo.width)};
}

// Two neighbours on the old axis and the weight of the second, for a pixel of the new one: half-pixel centres.
struct Between {
    int first, second;
    float weight;
    Between(int i, int from, int to) {
        float at = std::max((float(i) + 0.5f) * (float(from) / float(to)) - 0.5f, 0.0f);
        first = std::min(int(at), from - 1), second = std::min(first + 1, from - 1);
        weight = std::min(at - float(first), 1.0f);
    }
};

// Resizes a map bilinearly, without antialiasing, and calls use(y, row) with every row of the result.
template <typename Use>
void resize(const float* map, Size from, Size to, Use use) {
    std::vector<Between> along;
    for (int x = 0; x < to.width; x++) along.emplace_back(x, from.width, to.width);
    std::vector<float> mixed(size_t(from.width)), row(size_t(to.width));
    for (int y = 0; y < to.height; y++) {
        Between down(y, from.height, to.height);
        const float *above = map + size_t(down.first) * from.width, *below = map + size_t(down.second) * from.width;
        for (int x = 0; x < from.width; x++) mixed[x] = above[x] + (below[x] - above[x]) * down.weight;
        for (int x = 0; x < to.width; x++)
            row[x] = mixed[along[x].first] + (mixed[along[x].second] - mixed[along[x].first]) * along[x].weight;
        use(y, row.data());
    }
}

// Some models compare probabilities instead of logits; these are made before the maps are resized.
void prepare(std::vector<float>& maps, size_t area, const std::string& rule) {
    if (rule == "sigmoid") {
        for (float& value : maps) value = 1.0f / (1.0f + std::exp(-value));
    } else if (rule == "softmax") {
        for (size_t pixel = 0; pixel < area; pixel++) {
            float largest = maps[pixel], sum = 0.0f;
            for (size_t i = pixel; i < maps.size(); i += area) largest = std::max(largest, maps[i]);
            for (size_t i = pixel; i < maps.size(); i += area) sum += maps[i] = std::exp(maps[i] - largest);
            for (size_t i = pixel; i < maps.size(); i += area) maps[i] /= sum;
        }
    } else if (rule != "none") {
        throw std::runtime_error("fgaseg.before_resize: " + rule + " is not known to this program");
    }
}

void segment(const char* graph, const char* photo_path, const char* labels_path) {
    Ort::Env env(ORT_LOGGING_LEVEL_FATAL);
    Ort::Session session(env, std::filesystem::path(graph).c_str(), Ort::SessionOptions{});
    std::stringstream lines(metadata(session, "fgaseg.class_names"));
    std::vector<std::string> names;
    for (std::string name; std::getline(lines, name);) names.push_back(name);
    std::stringstream numbers(metadata(session, "fgaseg.first"));  // for every class the first that is equal to it
    std::vector<size_t> first;
    for (std::string number; std::getline(numbers, number, ',');) first.push_back(std::stoul(number));

    Size photo;
    std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> colours(
        stbi_load(photo_path, &photo.width, &photo.height, nullptr, 3), stbi_image_free);
    if (!colours) throw std::runtime_error(std::string(photo_path) + ": cannot be read: " + stbi_failure_reason());
    Size input = input_size(session, photo);
    std::vector<float> plane(photo.area()), pixels;  // pixels: RGB planes of values in 0..1, as the graph takes them
    for (int colour = 0; colour < 3; colour++) {
        for (size_t i = 0; i < plane.size(); i++) plane[i] = float(colours.get()[3 * i + size_t(colour)]) / 255.0f;
        auto keep = [&](int, float* row) { pixels.insert(pixels.end(), row, row + input.width); };
        resize(plane.data(), photo, input, keep);
    }

    const int64_t shape[] = {1, 3, input.height, input.width};
    const char *inputs[] = {"image"}, *outputs[] = {"logits"};
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto image = Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape, 4);
    auto logits = std::move(session.Run(Ort::RunOptions{}, inputs, &image, 1, outputs, 1)[0]);
    auto found = logits.GetTensorTypeAndShapeInfo().GetShape();  // 1, classes, height, width
    Size grid{int(found.at(2)), int(found.at(3))};
    if (found.at(1) != int64_t(names.size()))
        throw std::runtime_error("fgaseg.class_names: " + std::to_string(names.size()) + " names, but the graph has " +
                                 std::to_string(found.at(1)) + " classes");
    const float* values = logits.GetTensorData<float>();
    std::vector<float> maps(values, values + names.size() * grid.area());
    prepare(maps, grid.area(), metadata(session, "fgaseg.before_resize"));

    // One class after the other, so that all maps at the photo's size are never in memory; ties keep the first class.
    std::vector<float> best(photo.area(), -std::numeric_limits<float>::infinity());
    std::vector<size_t> labels(photo.area()), counts(names.size());
    for (size_t name = 0; name < names.size(); name++)
        resize(&maps[name * grid.area()], grid, photo, [&](int y, float* row) {
            size_t start = size_t(y) * size_t(photo.width);
            for (size_t x = 0; x < size_t(photo.width); x++)
                if (row[x] > best[start + x]) best[start + x] = row[x], labels[start + x] = first.at(name);
        });

    std::ofstream file(labels_path, std::ios::binary);
    file << "P5\n" << photo.width << " " << photo.height << "\n65535\n";
    for (size_t label : labels) file.put(char(label >> 8)).put(char(label & 255)), counts[label]++;
    if (!file.flush()) throw std::runtime_error(std::string(labels_path) + ": cannot be written");
    for (size_t i = 0; i < names.size(); i++)
        if (counts[i]) std::cout << 100.0 * double(counts[i]) / double(labels.size()) << "% " << names[i] << "\n";
}

int main(int count, char** arguments) {
    try {
        if (count != 4) throw std::runtime_error("usage: onnx_segment whole.onnx photo labels.pgm");
        segment(arguments[1], arguments[2], arguments[3]);
    } catch (const std::exception& error) {
        std::string message = error.what();
        std::replace(message.begin(), message.end(), '\n', ' ');
        std::cerr << "onnx_segment: " << message << "\n";
        return 1;
    }
}
