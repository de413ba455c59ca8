"""What a job may name: one list a family, and "package.module:Class" for everything that is in no list.

A list gives each builtin's class as text, so that a job imports what it names and nothing else. A new builtin is one
new file and one line here. A class of anybody else needs no line: a job names it by where Python finds it,

    [solver]
    name = "my_package.my_solver:MySolverConfig"

and the class's own fields are the section's other keys.
"""

from hpcopt.family import Family

WORKLOADS = Family(
    "workload",
    default="image_classification",
    image_classification="hpcopt.workloads.image_classification:ImageClassificationConfig",
    segmentation="hpcopt.workloads.segmentation:SegmentationConfig",
    node_classification="hpcopt.workloads.node_classification:NodeClassificationConfig",
    bert_pretraining="hpcopt.workloads.bert_pretraining:BertPretrainingConfig",
    language_model="hpcopt.workloads.language_model:LanguageModelConfig",
    list_reduction="hpcopt.workloads.list_reduction:ListReductionConfig",
    arithmetic_trees="hpcopt.workloads.arithmetic_trees:ArithmeticTreesConfig",
    graph_distance="hpcopt.workloads.graph_distance:GraphDistanceConfig",
    teacher="hpcopt.workloads.teacher:TeacherConfig",
    pictures="hpcopt.workloads.pictures.workload:PicturesConfig",
    w_language="hpcopt.workloads.w_language:WLanguageConfig",
    control="hpcopt.workloads.control.workload:ControlConfig",
    torch="hpcopt.workloads.own.workload:TorchConfig",
)

IMAGE_MODELS = Family(
    "model",
    default="mlp",
    mlp="hpcopt.models.mlp:MlpConfig",
    resnet="hpcopt.models.resnet:ResNetConfig",
    deep_resnet="hpcopt.models.deep_resnet:DeepResNetConfig",
    vit="hpcopt.models.vit:VitConfig",
    factor_mlp="hpcopt.models.nmf:FactorMlpConfig",
)

MASK_MODELS = Family("model", default="unet", unet="hpcopt.models.unet:UNetConfig")

GRAPH_MODELS = Family(
    "model",
    default="gcn",
    gcn="hpcopt.models.graph.networks:GcnConfig",
    graphsage="hpcopt.models.graph.networks:GraphSageConfig",
    gat="hpcopt.models.graph.networks:GatConfig",
    node_mlp="hpcopt.models.graph.networks:NodeMlpConfig",
)

VECTOR_MODELS = Family("model", default="relu_student", relu_student="hpcopt.models.relu_student:ReluStudentConfig")
PICTURE_MODELS = Family(
    "model",
    default="graph_weighted",
    graph_weighted="hpcopt.models.graph_weighted:GraphWeightedConfig",
    padded_mlp="hpcopt.models.padded_mlp:PaddedMlpConfig",
)

TOKEN_MODELS = Family("model", default="bert", bert="hpcopt.models.bert:BertConfig")

CAUSAL_MODELS = Family(
    "model",
    default="lstm",
    lstm="hpcopt.models.causal.lstm:LstmConfig",
    transformer="hpcopt.models.causal.transformer:TransformerConfig",
)

FRAME_MODELS = Family(
    "model",
    default="deductron",
    deductron="hpcopt.models.deductron:DeductronConfig",
    tanh_rnn="hpcopt.models.frames:TanhRnnConfig",
    frame_mlp="hpcopt.models.frames:FrameMlpConfig",
)

BODIES = Family(
    "body",
    default="mlp",
    mlp="hpcopt.models.control.perceptrons:MlpBodyConfig",
    dense_mlp="hpcopt.models.control.perceptrons:DenseMlpBodyConfig",
    simba="hpcopt.models.control.simba:SimbaBodyConfig",
)

FEATURES = Family(
    "features",
    default="none",
    none="hpcopt.models.control.features:NoFeaturesConfig",
    ofenet="hpcopt.models.control.ofenet:OfeNetConfig",
)

SOLVERS = Family(
    "solver",
    default="data_parallel",
    data_parallel="hpcopt.solvers.data_parallel:DataParallelConfig",
    kaisa="hpcopt.solvers.kaisa.solver:KaisaConfig",
    gossip="hpcopt.solvers.gossip:GossipConfig",
    snvrg="hpcopt.solvers.snvrg:SnvrgConfig",
    local="hpcopt.solvers.local.solver:LocalConfig",
    leader="hpcopt.solvers.leader.solver:LeaderConfig",
    pipeline="hpcopt.solvers.pipeline.solver:PipelineConfig",
    local_parallel="hpcopt.solvers.pipeline.local_parallel:LocalParallelConfig",
    full_graph="hpcopt.solvers.full_graph.solver:FullGraphConfig",
    gist="hpcopt.solvers.gist.solver:GistConfig",
    block_admm="hpcopt.solvers.block_admm.solver:BlockAdmmConfig",
    deepfacto="hpcopt.solvers.block_admm.deepfacto:DeepFactoConfig",
    amp="hpcopt.solvers.amp.solver:AmpConfig",
    tensor_init="hpcopt.solvers.relu_network.tensor_init:TensorInitConfig",
    relu_altmin="hpcopt.solvers.relu_network.relu_altmin:ReluAltMinConfig",
    altmin="hpcopt.solvers.splitting.altmin:AltMinConfig",
    bcd="hpcopt.solvers.splitting.bcd:BcdConfig",
    dladmm="hpcopt.solvers.splitting.dladmm:DlAdmmConfig",
    annealing="hpcopt.solvers.annealing.solver:AnnealingConfig",
    actor_critic="hpcopt.solvers.actor_critic.solver:ActorCriticConfig",
)

METHODS = Family(
    "method",
    default="sac",
    sac="hpcopt.solvers.actor_critic.sac:SacConfig",
    td3="hpcopt.solvers.actor_critic.td3:Td3Config",
)

REPLAYS = Family(
    "replay",
    default="uniform",
    uniform="hpcopt.solvers.actor_critic.replay:UniformReplayConfig",
    prioritised="hpcopt.solvers.actor_critic.prioritised:PrioritisedReplayConfig",
)

REWRITES = Family(
    "rewrite",
    coded_embedding="hpcopt.models.coded_embedding:CodedEmbeddingConfig",
    product_codes="hpcopt.models.product_codes:ProductCodesConfig",
    quantized="hpcopt.lowbit.quantized_model:QuantizedConfig",
)

HEADS = Family(
    "head",
    default="auto",
    auto="hpcopt.models.heads:AutoHeadConfig",
    linear="hpcopt.models.heads:LinearHeadConfig",
    pooled="hpcopt.models.heads:PooledHeadConfig",
    tokens="hpcopt.models.heads:TokensHeadConfig",
)

OPTIMIZERS = Family(
    "optimizer",
    default="sgd",
    sgd="hpcopt.optim.first_order:SgdConfig",
    adamw="hpcopt.optim.first_order:AdamWConfig",
    lamb="hpcopt.optim.lamb:LambConfig",
    signum="hpcopt.optim.signum:SignumConfig",
    adahessian="hpcopt.optim.adahessian:AdaHessianConfig",
    rsg="hpcopt.optim.rsg:RsgConfig",
    arsg="hpcopt.optim.rsg:ArsgConfig",
    svag="hpcopt.optim.svag:SvagConfig",
    m_svag="hpcopt.optim.svag:MSvagConfig",
    torch="hpcopt.optim.any_torch:AnyTorchConfig",
)

SCHEDULES = Family(
    "schedule",
    default="constant",
    constant="hpcopt.optim.schedule:ConstantConfig",
    cosine="hpcopt.optim.schedule:CosineConfig",
    linear="hpcopt.optim.schedule:LinearConfig",
    polynomial="hpcopt.optim.schedule:PolynomialConfig",
    step="hpcopt.optim.schedule:StepConfig",
)

EXCHANGES = Family(
    "exchange",
    default="ring",
    ring="hpcopt.exchange.sums:RingConfig",
    native="hpcopt.exchange.sums:NativeConfig",
    two_phase="hpcopt.exchange.lossy:TwoPhaseConfig",
    vote="hpcopt.exchange.signs:VoteConfig",
    lgc="hpcopt.exchange.lgc.reducer:LgcConfig",
    auto="hpcopt.exchange.auto:AutoConfig",
)

CODECS = Family(
    "codec",
    dense="hpcopt.compress.identity:Dense",
    half="hpcopt.compress.half:Half",
    sign="hpcopt.compress.sign:Sign",
    sign_bits="hpcopt.compress.sign:SignBits",
    qsgd="hpcopt.compress.qsgd:QSGD",
    psq="hpcopt.compress.psq:PSQ",
    bhq="hpcopt.compress.bhq:BHQ",
    terngrad="hpcopt.compress.terngrad:TernGrad",
    natural="hpcopt.compress.natural:Natural",
    biased_rounding="hpcopt.compress.natural:BiasedRounding",
    exponential_dithering="hpcopt.compress.natural:ExponentialDithering",
    topk="hpcopt.compress.topk:TopK",
    chunked_topk="hpcopt.compress.chunked_topk:ChunkedTopK",
    random_k="hpcopt.compress.random_subset:RandomK",
    adaptive_random="hpcopt.compress.random_subset:AdaptiveRandom",
    adacomp="hpcopt.compress.adacomp:AdaComp",
    atomo="hpcopt.compress.atomo:Atomo",
    per_tensor="hpcopt.compress.per_tensor:PerTensor",
    powersgd="hpcopt.compress.powersgd:PowerSGD",
    shared_terngrad="hpcopt.compress.terngrad:SharedTernGrad",
    shared_topk="hpcopt.compress.topk:SharedTopK",
    bounded="hpcopt.compress.bounded:Bounded",
)
